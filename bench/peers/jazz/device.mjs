// One device of Jazz: `write PORT KEYS` or `read PORT ENTRIES ID`. The writer stays until stdin ends.
import { readFileSync } from "node:fs";
import { createWorkerAccount } from "jazz-run/createWorkerAccount";
import { co, Group, z } from "jazz-tools";
import { startWorker } from "jazz-tools/worker";
import { WebSocket } from "ws";

const [role, port, given, id] = process.argv.slice(2);
const syncServer = `ws://127.0.0.1:${port}`;
const Entries = co.record(z.string(), z.string());
const account = await createWorkerAccount({ name: role, peer: syncServer });
const { worker } = await startWorker({
  syncServer,
  accountID: account.accountID,
  accountSecret: account.agentSecret,
  WebSocket,
});
const begun = performance.now();
const seconds = () => (performance.now() - begun) / 1000;

if (role === "write") {
  const group = Group.create({ owner: worker });
  group.addMember("everyone", "reader");
  const entries = Entries.create({}, { owner: group });
  const given_entries = Object.entries(JSON.parse(readFileSync(given)));
  for (const [place, [key, value]] of given_entries.entries()) {
    entries[key] = value;
    if (place % 100 === 99) await new Promise((resolve) => setImmediate(resolve));
  }
  await worker.waitForAllCoValuesSync({ timeout: 600_000 });
  console.log(JSON.stringify({ id: entries.id, seconds: seconds() }));
  process.stdin.resume();
  process.stdin.on("end", () => process.exit(0));
} else {
  const entries = await Entries.load(id, { loadAs: worker });
  while (Object.keys(entries._raw.latest).length < Number(given)) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  console.log(JSON.stringify({ seconds: seconds() }));
  process.exit(0);
}
