"use strict";
// The part of node-sqlite3's interface that knex uses, on top of libsql, whose binary comes with its package.
const { EventEmitter } = require("node:events");
const Libsql = require("libsql");

const plain = (value) => {
  if (value === undefined || value === null) return null;
  if (typeof value === "boolean") return value ? 1 : 0;
  if (value instanceof Date) return value.valueOf();
  return value;
};

// Directus writes one text in double quotes, which SQLite may read as a name.
const quoted = (sql) => sql.replace(/LIKE "([^"]*)"/g, "LIKE '$1'");

class Database extends EventEmitter {
  constructor(filename, mode, callback) {
    super();
    const then = typeof mode === "function" ? mode : callback;
    let error = null;
    try {
      this.inner = new Libsql(filename);
    } catch (fault) {
      error = fault;
    }
    setImmediate(() => then?.call(this, error));
  }

  #ask(method, sql, given, act) {
    const callback = typeof given.at(-1) === "function" ? given.pop() : undefined;
    const values = (Array.isArray(given[0]) ? given[0] : given.filter((each) => each !== undefined)).map(plain);
    let error = null;
    let found;
    const context = { lastID: 0, changes: 0 };
    try {
      found = act(this.inner.prepare(quoted(sql)), values, context);
    } catch (fault) {
      error = Object.assign(new Error(fault.message), { code: fault.code, errno: fault.rawCode });
      if (!error.message.startsWith("SQLITE")) error.message = `${fault.code ?? "SQLITE_ERROR"}: ${fault.message}`;
    }
    setImmediate(() => callback?.call(context, error, found));
    return this;
  }

  run(sql, ...given) {
    return this.#ask("run", sql, given, (statement, values, context) => {
      if (statement.reader) return void statement.all(...values);
      const { changes, lastInsertRowid } = statement.run(...values);
      Object.assign(context, { changes, lastID: Number(lastInsertRowid) });
    });
  }

  all(sql, ...given) {
    return this.#ask("all", sql, given, (statement, values) => {
      if (statement.reader) return statement.all(...values);
      statement.run(...values);
      return [];
    });
  }

  get(sql, ...given) {
    return this.#ask("get", sql, given, (statement, values) => statement.get(...values));
  }

  exec(sql, callback) {
    let error = null;
    try {
      this.inner.exec(sql);
    } catch (fault) {
      error = fault;
    }
    setImmediate(() => callback?.call(this, error));
    return this;
  }

  close(callback) {
    this.inner.close();
    setImmediate(() => callback?.call(this, null));
  }

  configure() {}
  loadExtension(path, callback) {
    setImmediate(() => callback?.call(this, new Error("no extensions")));
  }
  serialize(callback) {
    callback?.();
  }
  parallelize(callback) {
    callback?.();
  }
}

module.exports = { Database, OPEN_READONLY: 1, OPEN_READWRITE: 2, OPEN_CREATE: 4, verbose: () => module.exports };
