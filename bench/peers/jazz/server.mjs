// Jazz' own sync server on a SQLite file: prints its port, ends when stdin does.
import { startSyncServer } from "jazz-run/startSyncServer";

const server = await startSyncServer({ port: "0", inMemory: false, db: process.argv[2] });
if (!server.listening) await new Promise((resolve) => server.once("listening", resolve));
console.log(JSON.stringify({ port: server.address().port }));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
