'use strict'

// One process: fast-jwt with its cache, one script in the store by ioredis with automatic pipelining, and
// @fastify/http-proxy on undici with a connection for every client.

const { readFileSync } = require('node:fs')
const fastify = require('fastify')
const proxy = require('@fastify/http-proxy')
const { createVerifier } = require('fast-jwt')
const Redis = require('ioredis')

const { BENCH_KEEPALIVE_SECONDS, BENCH_PORT, BENCH_SECRET, BENCH_STORE, BENCH_TOUCH, BENCH_UPSTREAM } = process.env
const IDLE_SECONDS = 1800

const verify = createVerifier({ key: BENCH_SECRET, algorithms: ['HS256'], cache: 10000 })
const store = new Redis(BENCH_STORE, {
  enableAutoPipelining: true,
  scripts: { touchSession: { lua: readFileSync(BENCH_TOUCH, 'utf8'), numberOfKeys: 1 } }
})

const server = fastify({ logger: false, keepAliveTimeout: Number(BENCH_KEEPALIVE_SECONDS) * 1000, bodyLimit: 16 * 1024 * 1024 })

server.decorateRequest('user', null)
server.register(proxy, {
  upstream: BENCH_UPSTREAM,
  websocket: true,
  undici: { connections: 512, pipelining: 1, keepAliveTimeout: 60000 },
  replyOptions: {
    rewriteRequestHeaders: (request, headers) => ({ ...headers, 'x-user-id': request.user })
  },
  preHandler: async (request, reply) => {
    const authorization = request.headers.authorization
    let claims
    try {
      claims = verify(authorization && authorization.startsWith('Bearer ') ? authorization.slice(7) : '')
    } catch {
      return reply.code(401).send({ detail: 'Could not validate credentials' })
    }
    if ((await store.touchSession(`session:${claims.jti}`, IDLE_SECONDS)) !== 1) {
      return reply.code(401).send({ detail: 'Session revoked' })
    }
    request.user = claims.sub
  }
})

server.listen({ host: '127.0.0.1', port: Number(BENCH_PORT), backlog: 4096 })
