// Directus on SQLite, made anew in the folder DATA_DIRECTORY. It says nothing about its own start that names the port
// it was given, so a free one is looked for first.
const { spawnSync } = require("node:child_process");
const { mkdirSync } = require("node:fs");
const { createServer } = require("node:net");
const { join } = require("node:path");

const folder = process.env.DATA_DIRECTORY;
const probe = createServer().listen(0, "127.0.0.1", () => {
  const { port } = probe.address();
  probe.close(() => {
    Object.assign(process.env, {
      HOST: "127.0.0.1",
      PORT: String(port),
      KEY: "recipes",
      SECRET: process.env.SIGNING_KEY,
      DB_CLIENT: "sqlite3",
      DB_FILENAME: join(folder, "data.db"),
      ADMIN_EMAIL: "alice@example.org",
      ADMIN_PASSWORD: "wonderland-1",
      EXTENSIONS_PATH: join(folder, "extensions"),
      STORAGE_LOCAL_ROOT: join(folder, "uploads"),
      RATE_LIMITER_ENABLED: "false",
      SERVE_APP: "false",
      TELEMETRY: "false",
    });
    for (const name of ["extensions", "uploads"]) mkdirSync(join(folder, name), { recursive: true });
    const cli = join(__dirname, "node_modules", "directus", "cli.js");
    const made = spawnSync(process.execPath, [cli, "bootstrap"], { stdio: "inherit" });
    if (made.status !== 0) process.exit(1);
    process.argv.splice(2, Infinity, "start");
    import(cli);
  });
});
