'use strict';
// The design that chatd replaces: Express and ws in cluster workers, one chat log, everybody in one room.
// With REDIS (the path of a unix socket) messages go through its pub/sub, so that they reach the other workers too.
//   PORT=3000 WORKERS=2 REDIS=/run/redis.sock LOG=chat.log node server.js
// Says "ready" once all workers listen (and hear the bus).
const cluster = require('node:cluster');
const { createWriteStream } = require('node:fs');
const { createServer } = require('node:http');
const express = require('express');
const Redis = require('ioredis');
const { WebSocket, WebSocketServer } = require('ws');

const { PORT, WORKERS = '1', REDIS, LOG = 'chat.log' } = process.env;

function serve(ready) {
  const app = express();
  app.get('/', (request, response) => response.type('text').send('a chat: connect with a WebSocket\n'));

  const server = createServer(app);
  const chat = new WebSocketServer({ server, perMessageDeflate: false });
  const log = createWriteStream(LOG, { flags: 'a' });
  const members = new Map();
  let joined = 0;

  function broadcast(sender, text) {
    const line = Buffer.from(text); // once: a string would be encoded again for every socket
    for (const [id, socket] of members) {
      if (id !== sender && socket.readyState === WebSocket.OPEN) socket.send(line, { binary: false });
    }
  }

  let publish = broadcast;
  let heard = Promise.resolve();
  if (REDIS) {
    const publisher = new Redis(REDIS, { enableAutoPipelining: true });
    const subscriber = new Redis(REDIS);
    publish = (sender, text) => publisher.publish('chat', `${sender} ${text}`);
    subscriber.on('message', (channel, message) => {
      const space = message.indexOf(' ');
      broadcast(message.slice(0, space), message.slice(space + 1));
    });
    heard = subscriber.subscribe('chat');
  }

  chat.on('connection', (socket) => {
    const id = `${process.pid}-${(joined += 1)}`;
    members.set(id, socket);
    socket.on('close', () => members.delete(id));
    socket.on('error', () => socket.terminate());
    socket.on('message', (data) => {
      const text = data.toString();
      log.write(`${new Date().toISOString()} ${id} ${text}\n`);
      publish(id, text);
    });
  });

  heard.then(() => server.listen(Number(PORT), '127.0.0.1', 1024, ready));
}

if (cluster.isPrimary && Number(WORKERS) > 1) {
  let listening = 0;
  cluster.on('listening', () => {
    listening += 1;
    if (listening === Number(WORKERS)) console.log('ready');
  });
  for (let i = 0; i < Number(WORKERS); i += 1) cluster.fork();
} else {
  serve(() => cluster.isPrimary && console.log('ready'));
}
