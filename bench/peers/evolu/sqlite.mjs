// SQLite for Evolu, in the shape that it asks of a driver: by Node's own module, so that nothing need be compiled.
import { DatabaseSync } from "node:sqlite";
import { ok } from "@evolu/common";

// No pragmas: Evolu's own driver for Node sets none either, so that each commit is synced to disk.
export const driverOf = (path) => () => () => {
  const database = new DatabaseSync(path);
  const statements = new Map();
  const prepared = (sql) => {
    if (!statements.has(sql)) statements.set(sql, database.prepare(sql));
    return statements.get(sql);
  };
  return ok({
    exec: ({ sql, parameters }) => {
      const statement = prepared(sql);
      if (statement.columns().length > 0) return { rows: statement.all(...parameters), changes: 0 };
      return { rows: [], changes: statement.run(...parameters).changes };
    },
    export: () => new Uint8Array(),
    deleteDatabase: () => undefined,
    [Symbol.dispose]: () => database.close(),
  });
};
