// A chat that loses nothing: what is said is heard once and in order, one's own messages too, however often the
// connection breaks. It stands on what every browser has.
//
//   const chat = new Chat("ws://localhost:3000/ops?nick=ann", { heard: (message) => console.log(message.text) });
//   await chat.publish(chat.room, "hello");
"use strict";

const PATIENCE = 10_000; // milliseconds in which a connection opens, or answers
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 30_000;
const JOIN = 0; // what we call our requests to join; one to publish is called by its id

class Chat {
  room; // of the URL
  #url;
  #socket;
  #here = new Set(); // rooms in which the server has told us all that we had missed
  #positions = new Map(); // room: what we have heard last, {epoch, offset}
  #said = new Map(); // id: what is not acknowledged, oldest first
  #mark = random();
  #count = 0;
  #pause = FIRST_PAUSE;
  #silence = PATIENCE;
  #timer;
  #told;

  // Takes the URL of a room, further rooms, and whom to call: heard(message), lost(room, how many, or null), over(why),
  // connected(whether it is).
  constructor(url, { rooms = [], heard, lost = () => {}, over = () => {}, connected = () => {} }) {
    // With one key all connections are one author, of whom an id is published once. With the echo our own messages
    // come in their order among the others, and what was heard last is a position.
    const where = new URL(url);
    this.room = decode(where.pathname.slice(1)) || "lobby";
    where.searchParams.set("echo", "1");
    where.searchParams.set("resume", random());
    this.#url = where.href;
    for (const room of [this.room, ...rooms]) this.#positions.set(room, null);
    this.#told = { heard, lost, over, connected };
    this.#connect();
  }

  // Says something; gives where it stands, once it is in the room. Rejects where the server refuses it.
  publish(room, text) {
    const id = `${this.#mark}-${++this.#count}`;
    const request = { type: "publish", ref: id, room, text, id };
    return new Promise((resolve, reject) => {
      this.#said.set(id, { request, resolve, reject });
      this.#publish(request);
    });
  }

  // Goes, and does not come back.
  leave(why = "left") {
    this.#drop();
    clearTimeout(this.#timer);
    for (const { reject } of this.#said.values()) reject(new Error(why));
    this.#said.clear();
  }

  #connect() {
    const socket = (this.#socket = new WebSocket(this.#url, "chatd.v1"));
    socket.onmessage = ({ data }) => {
      // A page sees no pings, and a connection that is dead tells nobody.
      this.#after(this.#silence, () => {
        this.#send({ type: "ping" });
        this.#after(PATIENCE, () => this.#comeBack());
      });
      this.#take(JSON.parse(data));
    };
    socket.onclose = socket.onerror = () => this.#comeBack(); // some say but one of the two
    this.#after(PATIENCE, () => this.#comeBack());
  }

  #comeBack(milliseconds = Math.random() * this.#pause) {
    this.#drop();
    this.#told.connected(false);
    this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
    this.#after(milliseconds, () => this.#connect());
  }

  #drop() {
    this.#here.clear();
    this.#socket.onmessage = this.#socket.onclose = this.#socket.onerror = null; // to close a dead one takes long
    this.#socket.close();
  }

  #after(milliseconds, call) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(call, milliseconds);
  }

  #send(request) {
    this.#socket.send(JSON.stringify(request));
  }

  #publish(request) {
    if (this.#here.has(request.room)) this.#send(request); // else once we are there
  }

  #take(event) {
    const { type, room, ref } = event;
    if (type === "welcome") {
      this.#pause = FIRST_PAUSE;
      this.#silence = event.ping_s * 1000;
      this.#told.connected(true);
    } else if (type === "joined" && ref === JOIN) {
      this.#joined(event);
    } else if (type === "joined") {
      // by the URL, which does not know up to where we have heard
      if (!this.#positions.get(room)) this.#joined(event);
      for (const [name, position] of this.#positions) {
        if (!this.#here.has(name)) {
          this.#send({ type: "join", ref: JOIN, room: name, ...(position && { since: position }) });
        }
      }
    } else if (type === "message" && this.#here.has(room)) {
      this.#hear(event); // else it comes in `joined`
    } else if (type === "ack") {
      this.#answered(ref, event);
    } else if (type === "gap") {
      this.#told.lost(room, event.from === null ? null : event.to - event.from + 1);
    } else if (type === "error" && this.#said.has(ref)) {
      this.#refused(this.#said.get(ref), event);
    } else if (type === "error" || type === "bye") {
      const seconds = event.retry_after ?? event.reconnect_after;
      if (seconds === undefined) this.#end(event.message ?? event.reason);
      else this.#comeBack(seconds * 1000);
    }
  }

  #end(why) {
    this.leave(why);
    this.#told.over(why);
  }

  #joined({ room, epoch, offset, recovered, lost, messages }) {
    if (!recovered) this.#told.lost(room, lost);
    this.#positions.set(room, { epoch, offset });
    for (const message of messages) this.#hear(message);
    this.#here.add(room);
    for (const { request } of this.#said.values()) {
      if (request.room === room) this.#send(request);
    }
  }

  #hear(message) {
    const { room, epoch, offset, id } = message;
    this.#positions.set(room, { epoch, offset });
    this.#answered(id, message); // where it is ours: the `ack` may have been lost
    this.#told.heard(message);
  }

  #answered(id, event) {
    this.#said.get(id)?.resolve(event);
    this.#said.delete(id);
  }

  #refused({ request, reject }, { retry_after: seconds, message }) {
    if (seconds !== undefined) {
      setTimeout(() => this.#said.has(request.id) && this.#publish(request), seconds * 1000);
    } else {
      this.#said.delete(request.id);
      reject(new Error(message));
    }
  }
}

// As the server reads it: a percent sign that encodes nothing stands for itself.
function decode(path) {
  return path.replace(/(%[0-9a-f]{2})+/gi, (bytes) => {
    try {
      return decodeURIComponent(bytes);
    } catch {
      return bytes; // it is not UTF-8, and the server will refuse the room
    }
  });
}

function random() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
