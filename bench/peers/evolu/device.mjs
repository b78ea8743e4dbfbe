// One device of Evolu: `write PORT KEYS` or `read PORT ENTRIES ID`. The writer stays until stdin ends.
import { readFileSync } from "node:fs";
import * as evolu from "@evolu/common";
import * as local from "@evolu/common/local-first";
import { installPolyfills } from "@evolu/common/polyfills";
import { driverOf } from "./sqlite.mjs";

const TOGETHER = 1000; // entries in one change
const [role, port, given, id] = process.argv.slice(2);
installPolyfills();

// All of Evolu in this process, as where there are no workers: by its own ports and channels.
const channels = {
  createBroadcastChannel: evolu.createBroadcastChannel,
  createMessageChannel: evolu.createMessageChannel,
  createMessagePort: evolu.createMessagePort,
  lockManager: navigator.locks,
};
const workerRun = () => {
  const output = evolu.createConsoleStoreOutput();
  return evolu.createRun({
    ...channels,
    console: evolu.createConsole({ output, level: "error" }),
    consoleStoreOutputEntry: output.entry,
    createWebSocket: evolu.createWebSocket,
    createSqliteDriver: driverOf(":memory:"),
  });
};
const deps = local.createEvoluDeps({
  ...channels,
  createDbWorker: () => evolu.createWorker((self) => void workerRun()(local.startDbWorker(self))),
  sharedWorker: evolu.createSharedWorker((self) => void workerRun()(local.initSharedWorker(self))),
  console: evolu.createConsole({ level: "error" }),
  reloadApp: () => undefined,
});
const secret = id
  ? evolu.Uint8Array.orThrow(Buffer.from(id, "hex"))
  : local.createOwnerSecret({ randomBytes: evolu.createRandomBytes() });
const Schema = { entry: { id: evolu.id("Entry"), text: evolu.NonEmptyString100 } };
const begun = performance.now();
const seconds = () => (performance.now() - begun) / 1000;
const device = await evolu.createRun(deps).orThrow(
  local.createEvolu(Schema, {
    appName: local.AppName.orThrow("bench"),
    appOwner: local.createAppOwner(local.OwnerSecret.orThrow(new Uint8Array(secret))),
    memoryOnly: true,
    transports: [{ type: "WebSocket", url: `ws://127.0.0.1:${port}` }],
  }),
);

if (role === "write") {
  const entries = Object.entries(JSON.parse(readFileSync(given)));
  for (let at = 0; at < entries.length; at += TOGETHER) {
    const part = entries.slice(at, at + TOGETHER);
    await new Promise((resolve) => {
      for (const [place, [key, text]] of part.entries()) {
        const options = place === part.length - 1 ? { onComplete: resolve } : {};
        device.upsert("entry", { id: evolu.createIdFromString(key), text }, options);
      }
    });
  }
  console.log(JSON.stringify({ id: Buffer.from(secret).toString("hex"), seconds: seconds() }));
  process.stdin.resume();
  process.stdin.on("end", () => process.exit(0));
} else {
  const count = local.createQueryBuilder(Schema)((db) => db.selectFrom("entry").select((eb) => eb.fn.countAll().as("n")));
  const enough = () => (device.getQueryRows(count)[0]?.n ?? 0) >= Number(given);
  await new Promise((resolve) => {
    device.subscribeQuery(count)(() => enough() && resolve());
    void device.loadQuery(count);
  });
  console.log(JSON.stringify({ seconds: seconds() }));
  process.exit(0);
}
