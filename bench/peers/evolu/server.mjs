// Evolu's own relay on a SQLite file: prints its port, ends when stdin does.
import { createConsole } from "@evolu/common";
import { installPolyfills } from "@evolu/common/polyfills";
import { createRelayDeps, createRun, startRelay } from "@evolu/nodejs";
import { driverOf } from "./sqlite.mjs";

installPolyfills();
const quiet = createConsole({ level: "error" }); // stdout has the port alone
await using run = createRun({ ...createRelayDeps(), createSqliteDriver: driverOf(process.argv[2]), console: quiet });
// Its port goes to `listen`, which takes an address with it.
await using relay = await run.orThrow(
  startRelay({ port: { port: 0, host: "127.0.0.1" }, isOwnerWithinQuota: () => true }),
);
console.log(JSON.stringify({ port: relay.port }));
process.stdin.resume();
await new Promise((resolve) => process.stdin.on("end", resolve));
