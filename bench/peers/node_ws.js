// `ws`: what a pusher (/push) sends goes to all listeners (/), and is then answered by an empty message.
import { WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false, backlog: 4096 });
const listeners = new Set();

server.on("connection", (socket, request) => {
  if (request.url !== "/push") {
    listeners.add(socket);
    return;
  }
  socket.on("message", (data) => {
    for (const listener of listeners) listener.send(data);
    socket.send(Buffer.alloc(0));
  });
});
server.on("listening", () => console.log(server.address().port));
