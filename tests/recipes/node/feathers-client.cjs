// Feathers' own client as one device. Each line of the input is {"act", …}, each line of the output what came of it.
const auth = require("@feathersjs/authentication-client").default;
const { feathers } = require("@feathersjs/feathers");
const rest = require("@feathersjs/rest-client").default;
const readline = require("node:readline");

const url = process.argv[2];
const memory = () => {
  const kept = new Map();
  return {
    getItem: (key) => kept.get(key) ?? null,
    setItem: (key, value) => kept.set(key, value),
    removeItem: (key) => kept.delete(key),
  };
};

const device = () => {
  const app = feathers();
  app.configure(rest(url).fetch(fetch));
  app.configure(auth({ storage: memory() }));
  return app;
};

const acts = {
  login: (app, given) => app.authenticate({ strategy: "local", email: given.email, password: given.password }),
  ask: async (app) => {
    const found = await app.service("users").find();
    return { user: found[0].email };
  },
  // A page that is loaded again signs in with the token that it has kept.
  refresh: (app) => app.reAuthenticate(true),
  logout: (app) => app.logout(),
  hold: (app, given) => {
    app.set("authentication", Promise.resolve({ accessToken: given.token }));
    return app.authentication.setAccessToken(given.token);
  },
  token: async (app) => ({ token: await app.authentication.getAccessToken() }),
};

(async () => {
  const app = device();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const given = JSON.parse(line);
    let said;
    try {
      said = { status: 200, body: await acts[given.act](app, given) };
    } catch (error) {
      // What an application catches.
      const { name, code, data, message } = error;
      said = { status: error.response?.status ?? code, body: { name, code, data, message } };
    }
    console.log(JSON.stringify(said));
  }
})();
