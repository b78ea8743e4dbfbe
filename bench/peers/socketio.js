// socket.io: what a pusher sends as `push` goes to all others as `record`, and is then answered by `done`.
import { createServer } from "node:http";
import { Server } from "socket.io";

const http = createServer();
const server = new Server(http, { transports: ["websocket"], perMessageDeflate: false, serveClient: false });

server.on("connection", (socket) => {
  socket.on("push", (data) => {
    socket.broadcast.emit("record", data);
    socket.emit("done");
  });
});
http.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => console.log(http.address().port));
