// One device of automerge-repo: `write PORT KEYS` or `read PORT ENTRIES ID`. The writer stays until stdin ends.
import { readFileSync } from "node:fs";
import { Repo } from "@automerge/automerge-repo";
import { WebSocketClientAdapter } from "@automerge/automerge-repo-network-websocket";

const TOGETHER = 1000; // entries in one change
const [role, port, given, id] = process.argv.slice(2);
const connected = (peerId) => new Repo({ network: [new WebSocketClientAdapter(`ws://127.0.0.1:${port}`)], peerId });
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
let begun = performance.now();
const seconds = () => (performance.now() - begun) / 1000;

// The server says that there is no such document until it has something of it; then only a new repo asks again.
const found = async () => {
  for (let attempt = 0; ; attempt++) {
    begun = performance.now();
    try {
      return await connected(`${role}${attempt}`).find(id);
    } catch {
      await pause(500);
    }
  }
};

if (role === "write") {
  const handle = connected(role).create({ entries: {} });
  const entries = Object.entries(JSON.parse(readFileSync(given)));
  for (let at = 0; at < entries.length; at += TOGETHER) {
    handle.change((document) => {
      for (const [key, value] of entries.slice(at, at + TOGETHER)) document.entries[key] = value;
    });
    await pause(0);
  }
  console.log(JSON.stringify({ id: handle.url, seconds: seconds() }));
  process.stdin.resume();
  process.stdin.on("end", () => process.exit(0));
} else {
  const handle = await found();
  while (Object.keys(handle.doc()?.entries ?? {}).length < Number(given)) await pause(20);
  console.log(JSON.stringify({ seconds: seconds() }));
  process.exit(0);
}
