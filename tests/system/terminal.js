// docs/clients/chat.js in a terminal, as if it were in a page: node terminal.js URL [ROOM…]
// A line that is typed is said in the room of the URL, and does not wait for the ones before.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");

// What every browser has, and not every Node.
globalThis.WebSocket ??= class extends require(path.join(__dirname, "../../build/seed/node_modules/ws")) {
  constructor(url, protocols) {
    super(url, protocols);
    this.on("error", () => {}); // in a page nobody has to hear it
  }
};
globalThis.crypto ??= require("node:crypto").webcrypto;

const file = path.join(__dirname, "../../docs/clients/chat.js");
const Chat = vm.runInThisContext(`${fs.readFileSync(file)}; Chat`, file);

const [url, ...rooms] = process.argv.slice(2);
const chat = new Chat(url, {
  rooms,
  heard: ({ room, nick, text }) => console.log(`${room} ${nick ?? "-"}: ${text}`),
  lost: (room, count) => console.log(`* ${room}: ${count} lost`),
  over: (why) => console.log(`* ${why}`),
});
const said = [];
const typed = require("node:readline").createInterface({ input: process.stdin });
typed.on("line", (line) => said.push(chat.publish(chat.room, line)));
typed.on("close", () => Promise.all(said).then(() => chat.leave()));
