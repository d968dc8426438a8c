// Feathers with its authentication service, local and JWT strategies, as its generator writes them. Nothing here knows
// of Gatekeeper.
const { AuthenticationService, JWTStrategy, authenticate } = require("@feathersjs/authentication");
const { LocalStrategy, hooks } = require("@feathersjs/authentication-local");
const express = require("@feathersjs/express");
const { feathers } = require("@feathersjs/feathers");
const { memory } = require("@feathersjs/memory");

const app = express.default(feathers());
app.use(express.json());
app.configure(express.rest());
app.set("authentication", {
  secret: process.env.SIGNING_KEY,
  entity: "user",
  service: "users",
  authStrategies: ["jwt", "local"],
  jwtOptions: { header: { typ: "access" }, audience: "https://example.org", algorithm: "HS256", expiresIn: "1d" },
  local: { usernameField: "email", passwordField: "password" },
});

app.use("users", memory({ multi: true }));
app.service("users").hooks({
  before: { all: [], create: [hooks.hashPassword("password")], find: [authenticate("jwt")], get: [authenticate("jwt")] },
  after: { all: [hooks.protect("password")] },
});

const authentication = new AuthenticationService(app);
authentication.register("jwt", new JWTStrategy());
authentication.register("local", new LocalStrategy());
app.use("authentication", authentication);
app.use(express.errorHandler({ logger: false }));

(async () => {
  const server = await app.listen(0, "127.0.0.1");
  await app.service("users").create({ email: "alice@example.org", password: "wonderland-1" });
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
})();
