// automerge-repo's own WebSocket server on files: prints its port; writes all that waits and ends when stdin does.
import { Repo } from "@automerge/automerge-repo";
import { WebSocketServerAdapter } from "@automerge/automerge-repo-network-websocket";
import { NodeFSStorageAdapter } from "@automerge/automerge-repo-storage-nodefs";
import { WebSocketServer } from "ws";

const sockets = new WebSocketServer({ port: 0, host: "127.0.0.1" });
const repo = new Repo({
  network: [new WebSocketServerAdapter(sockets)],
  storage: new NodeFSStorageAdapter(process.argv[2]),
  peerId: "server",
  sharePolicy: async () => false,
});
sockets.once("listening", () => console.log(JSON.stringify({ port: sockets.address().port })));
process.stdin.resume();
process.stdin.on("end", async () => {
  await repo.flush();
  process.exit(0);
});
