// Drives the class of session-manager.ts, which is a client of the dialect `fastapi` as its specification prints it:
//
//     esbuild --loader=ts < session-manager.ts > session-manager.js
//     node drive.mjs session-manager.js http://127.0.0.1:8000 USER PASSWORD SECONDS
//
// SECONDS is how long to wait until the access token has expired. A line of JSON for every step: what the step gave,
// the requests that it made, in order, and the tokens in `localStorage` after it.

import { readFile } from 'node:fs/promises';

const [file, base, username, password, seconds] = process.argv.slice(2);
const api = `${base}/api/v1`;

// What a browser has and Node has not, or not in every version.
const stored = new Map();
const browser = {
    localStorage: {
        getItem: (key) => stored.get(key) ?? null,
        setItem: (key, value) => void stored.set(key, String(value)),
        removeItem: (key) => void stored.delete(key),
    },
    navigator: globalThis.navigator?.language ? globalThis.navigator : { language: 'en-US' },
};
for (const [name, value] of Object.entries(browser)) {
    Object.defineProperty(globalThis, name, { value, configurable: true });
}

let requests = [];
const realFetch = globalThis.fetch;
globalThis.fetch = async (url, options = {}) => {
    const response = await realFetch(url, options);
    requests.push({
        method: options.method ?? 'GET',
        path: new URL(url).pathname,
        bearer: options.headers?.Authorization?.replace('Bearer ', '') ?? null,
        sent: options.body ? JSON.parse(options.body) : null,
        status: response.status,
        answer: await response.clone().json(),
    });
    return response;
};

async function step(name, action) {
    const result = await action();
    console.log(JSON.stringify({ step: name, ...result, requests, stored: Object.fromEntries(stored) }));
    requests = [];
}

async function told(response) {
    return { status: response.status, answer: await response.json() };
}

// The class is not exported; its text stays as it is.
const source = await readFile(file, 'utf8');
const module = `data:text/javascript,${encodeURIComponent(`${source}\nexport { SessionManager };\n`)}`;
const { SessionManager } = await import(module);
const manager = new SessionManager(api);

await step('wrong password', () => manager.login(username, `${password}?`).then(
    () => ({ error: null }),
    (error) => ({ error: error.message }),
));
await step('login', () => manager.login(username, password));
await step('request', async () => told(await manager.apiRequest(`${api}/protected`)));
await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
await step('request after expiry', async () => told(await manager.apiRequest(`${api}/protected`)));
const last = stored.get('access_token');
await step('logout', () => manager.logout());
await step('last token', async () => told(
    await fetch(`${api}/protected`, { headers: { Authorization: `Bearer ${last}` } }),
));
await step('request without login', () => manager.apiRequest(`${api}/protected`).then(
    () => ({ error: null }),
    (error) => ({ error: error.message }),
));
// The class's timer of 25 minutes, and connections kept alive, are nobody's any more.
process.exit(0);
