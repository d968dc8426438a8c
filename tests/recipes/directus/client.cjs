// Directus' own client as one device. Each line of the input is {"act", …}, each line of the output what came of it.
const { authentication, createDirectus, readMe, rest } = require("@directus/sdk");
const readline = require("node:readline");

// What it holds, and what it held when it was last asked for its token.
let held = null;
let before = null;
const storage = { get: () => held, set: (value) => (held = value) };
const client = createDirectus(process.argv[2])
  .with(authentication("json", { autoRefresh: false, storage }))
  .with(rest());

const acts = {
  login: (given) => client.login(given.email, given.password),
  ask: () => client.request(readMe({ fields: ["email"] })),
  refresh: () => client.refresh(),
  logout: () => client.logout(),
  token: async () => {
    before = { ...held };
    return { token: await client.getToken() };
  },
  hold: () => storage.set(before),
};

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const given = JSON.parse(line);
    let said;
    try {
      said = { status: 200, body: (await acts[given.act](given)) ?? {} };
    } catch (error) {
      // What an application catches.
      const { message, errors, response } = error;
      said = { status: response?.status ?? 599, body: { message, errors } };
    }
    console.log(JSON.stringify(said));
  }
})();
