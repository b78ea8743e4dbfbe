// One device of automerge-repo: `write PORT KEYS` or `read PORT ENTRIES ID`. The writer stays until stdin ends.
import { readFileSync } from "node:fs";
import { Repo } from "@automerge/automerge-repo";
import { WebSocketClientAdapter } from "@automerge/automerge-repo-network-websocket";

const TOGETHER = 1000; // entries in one change
const [role, port, given, id] = process.argv.slice(2);
const repo = new Repo({ network: [new WebSocketClientAdapter(`ws://127.0.0.1:${port}`)], peerId: role });
const begun = performance.now();
const seconds = () => (performance.now() - begun) / 1000;

if (role === "write") {
  const handle = repo.create({ entries: {} });
  const entries = Object.entries(JSON.parse(readFileSync(given)));
  for (let at = 0; at < entries.length; at += TOGETHER) {
    handle.change((document) => {
      for (const [key, value] of entries.slice(at, at + TOGETHER)) document.entries[key] = value;
    });
    await new Promise((resolve) => setImmediate(resolve));
  }
  console.log(JSON.stringify({ id: handle.url, seconds: seconds() }));
  process.stdin.resume();
  process.stdin.on("end", () => process.exit(0));
} else {
  const handle = await repo.find(id);
  while (Object.keys(handle.doc()?.entries ?? {}).length < Number(given)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  console.log(JSON.stringify({ seconds: seconds() }));
  process.exit(0);
}
