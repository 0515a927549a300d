// The chat page: several rooms over one WebSocket that speaks chatd.v1, to where the page came from.
//
// `Link` dials, again and again; `Room` holds what was said in one room, in its order; `Outbox` sends what is pending;
// `Log` shows one room; `Gate` asks for a token; `Chat` puts them together. Whatever comes from somebody else is text:
// it is shown by textContent alone.

const SHOWN = 1000; // messages and gaps that are kept of a room; what is beyond is fetched again by scrolling there
const PAGE = 50; // messages of history that are fetched at once
const ADDRESS = 2048; // characters that an address has at most; a longer one is text
const AHEAD = 300; // pixels from an end of what is kept within which more of it is fetched
const NEAR = 48; // pixels from the end within which one reads along
const LATE = 100; // milliseconds after which what waits for a frame is drawn without one
const SILENCE = 10_000; // milliseconds without an answer after which the link is dead
const COUNTED = 30_000; // milliseconds after which a room that is only counted is counted again
const LISTED = 4; // so many times as long until its members are listed again: meanwhile we are told who comes and goes
const SOON = 60; // seconds before its end in which a token is to be replaced
const TAKEN_OVER = 1008, TOKEN_OUT = 4001, GIVEN_UP = 0; // the last one is our own: nobody sends it

const find = (id) => document.getElementById(id);

function make(tag, className = "", text = null) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  return element;
}

// Makes the children of an element those that belong to a list. A row is the same element for as long as its key is in
// the list, and is moved only where the order has changed: what one presses, has selected or has the focus on stays.
// make(item) gives a new row; change(row, item, before) shows in it what is so now, before being the item above.
function update(parent, items, key, make, change) {
  const old = rowsOf.get(parent) ?? new Map();
  const rows = new Map(items.map((item) => [key(item), old.get(key(item)) ?? make(item)]));
  for (const [name, row] of old) if (!rows.has(name)) row.remove();
  let next = parent.firstElementChild;
  items.forEach((item, place) => {
    const row = rows.get(key(item));
    if (row === next) next = row.nextElementSibling;
    else parent.insertBefore(row, next);
    change(row, item, items[place - 1]);
  });
  rowsOf.set(parent, rows);
}

const rowsOf = new WeakMap(); // by parent: its rows, by key

// Gives what draws once with the next frame, however often it is called until then. A page that nobody sees has no
// frames, but it has timers.
function soon(draw) {
  let due = false;
  const now = () => {
    if (!due) return;
    due = false;
    draw();
  };
  return () => {
    if (due) return;
    due = true;
    requestAnimationFrame(now);
    setTimeout(now, LATE);
  };
}

// Draws a part; where that fails the other parts are drawn all the same.
function attempt(draw, otherwise = () => {}) {
  try {
    return draw();
  } catch (error) {
    console.error(error);
    return otherwise();
  }
}

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const utf8 = (text) => new TextEncoder().encode(text).length;
const newId = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (each) => each.toString(36)).join("");

// The room that the address names; null where it is malformed (/%zz).
function roomHere() {
  try {
    return decodeURIComponent(location.pathname.slice(1)).normalize("NFC") || "lobby";
  } catch {
    return null;
  }
}

// What outlives a reload. A browser may forbid it: then nothing does.

class Memory {
  constructor(store) {
    this.store = store;
  }

  get(name, otherwise) {
    try {
      return JSON.parse(this.store().getItem(`chatd.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  set(name, value) {
    try {
      this.store().setItem(`chatd.${name}`, JSON.stringify(value));
    } catch {
      // full, or forbidden
    }
  }
}

const lasting = new Memory(() => localStorage); // of this browser
const ours = new Memory(() => sessionStorage); // of this tab

// A token: it may stand in the address, and does not stay there, where it would be seen, copied and kept.

const isToken = (text) => /^[\w-]+(\.[\w-]*){2}$/.test(text); // and so may stand in a header

function takeToken() {
  const given = [location.hash.slice(1), location.search].map((each) => new URLSearchParams(each).get("token"));
  if (given.some((each) => each !== null)) history.replaceState(null, "", location.pathname);
  return given.find(isToken) ?? "";
}

// The connection

class Link {
  // hears: dialling(), received(event), lost(code, reason) and, where it was not even welcome, turnedAway(), which both
  // say whether to come back, waiting(seconds); url() and protocols(): where to, and how
  constructor(hears, url, protocols) {
    this.hears = hears;
    this.url = url;
    this.protocols = protocols;
    this.socket = null;
    this.welcomed = false;
    this.timer = 0;
    this.tries = 0;
    this.hint = null; // seconds, from the server
    this.over = false;
    this.watch = 0;
    this.pingSeconds = 25;
  }

  dial() {
    clearTimeout(this.timer);
    if (this.socket || this.over) return;
    this.hears.dialling();
    this.welcomed = false;
    const socket = (this.socket = new WebSocket(this.url(), this.protocols()));
    socket.onmessage = ({ data }) => this.received(JSON.parse(data));
    socket.onclose = ({ code, reason }) => {
      if (socket === this.socket) this.lost(code, reason);
    };
    this.expect(SILENCE);
  }

  received(event) {
    this.expect(this.pingSeconds * 1000, () => {
      this.send({ type: "ping" });
      this.expect(SILENCE);
    });
    if (event.type === "welcome") {
      this.welcomed = true;
      this.tries = 0;
      this.pingSeconds = event.ping_s;
    } else if (event.type === "bye") {
      this.hint = event.reconnect_after ?? null;
    }
    this.hears.received(event);
  }

  // A browser notices a dead link late or never: ask it for a sign of life.
  expect(milliseconds, otherwise = () => this.drop()) {
    clearTimeout(this.watch);
    this.watch = setTimeout(otherwise, milliseconds);
  }

  send(request) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(request));
    return true;
  }

  drop() {
    const socket = this.socket;
    if (!socket) return;
    this.lost(GIVEN_UP, "");
    socket.close();
  }

  dialAgain() {
    this.over = false;
    this.tries = 0;
    this.dial();
  }

  async lost(code, reason) {
    clearTimeout(this.watch);
    this.socket = null;
    let again = this.hears.lost(code, reason);
    if (again === true && !this.welcomed && code !== GIVEN_UP) again = await this.hears.turnedAway();
    if (this.socket) return; // it was dialled meanwhile
    if (!again) {
      this.over = true;
      return;
    }
    const backOff = Math.min(30, 0.25 * 2 ** this.tries++) * (0.5 + Math.random());
    const wait = again === "at once" ? 0 : (this.hint ?? backOff);
    this.hint = null;
    this.timer = setTimeout(() => this.dial(), wait * 1000);
    this.hears.waiting(wait);
  }
}

// What was said in one room

class Room {
  constructor(name) {
    this.name = name;
    this.joined = false;
    this.epochs = []; // in the order in which they began
    this.position = null; // of the newest message that we know of, or that is lost
    this.items = []; // messages and gaps, in their order: a stretch of the room without holes
    this.known = new Set(); // EPOCH-OFFSET
    this.detached = false; // whether the stretch ends before the newest message
    this.pending = []; // of our own, not in the order yet, as they were written
    this.resting = false; // whether the server takes nothing for this room just now
    this.members = new Map();
    this.count = null; // where they are too many to be listed
    this.older = true; // whether history may have more
    this.asking = false; // for messages
    this.counting = false; // asking for members
    this.unread = 0;
    this.marker = null; // at which position one left off
    this.draft = "";
    this.barred = ""; // why one may not read here
    this.mute = false; // whether one may only read here
  }

  rank(epoch) {
    let rank = this.epochs.indexOf(epoch);
    if (rank < 0) rank = this.epochs.push(epoch) - 1;
    return rank;
  }

  // Takes what is said now, or is lost: a gap stands half an offset behind its last message. Gives whether it is new.
  hear(item) {
    if (!this.detached) return this.insert(item);
    item.rank = this.rank(item.epoch);
    return this.reach(item);
  }

  // Puts it where it belongs; gives whether it was not there.
  insert(item) {
    const key = `${item.epoch}-${item.offset}`;
    if (this.known.has(key)) return false;
    this.known.add(key);
    item.rank = this.rank(item.epoch);
    let place = this.items.length;
    while (place > 0 && after(this.items[place - 1], item)) place--;
    this.items.splice(place, 0, item);
    this.reach(item);
    return true;
  }

  // Moves the position on; gives whether it was not as far yet.
  reach({ epoch, offset, rank }) {
    const here = { epoch, offset: Math.floor(offset), rank };
    if (this.position && !after(here, this.position)) return false;
    this.position = here;
    return true;
  }

  // Forgets what is too much, on the side that is far from the place which is read.
  trim(read = Infinity) {
    const extra = this.items.length - SHOWN;
    if (extra <= 0) return;
    const newest = read - extra < SHOWN / 2;
    for (const { epoch, offset } of this.items.splice(newest ? SHOWN : 0, extra)) this.known.delete(`${epoch}-${offset}`);
    if (newest) this.detached = true;
    else this.older = true;
  }

  // Forgets the stretch; another one begins with what is said next.
  forget() {
    this.items = [];
    this.known.clear();
    this.detached = false;
    this.older = true;
  }

  get oldest() {
    return this.items.find((each) => each.kind === "message");
  }
}

const after = (one, other) => one.rank > other.rank || (one.rank === other.rank && one.offset > other.offset);

// What is pending in all rooms, on its way to the server: one line at a time, so that all arrive as they were written.

class Outbox {
  // sends: rooms, limits, publish(room, item, answered), said(room, item, ack), waits(item, reason) and
  // refused(room, item, error)
  constructor(sends) {
    this.sends = sends;
    this.resting = false; // whether the server takes nothing from us just now
    this.slow = false; // whether it has said that we were too fast, and there is still more to send
    this.lost();
  }

  // Nothing is on its way any more: what was is sent again, under its id.
  lost() {
    this.sent = null;
  }

  send() {
    if (this.sent || this.resting) return;
    for (const room of this.sends.rooms.values()) {
      const item = room.joined && !room.resting && room.pending.find(isDue);
      if (!item) continue;
      this.sent = item;
      if (this.sends.publish(room, item, (answer) => this.answered(room, item, answer))) return;
      this.lost();
    }
    this.slow = false;
  }

  answered(room, item, answer) {
    this.lost();
    const again = answer.retry_after;
    if (answer.type === "ack") {
      this.sends.said(room, item, answer);
      if (this.slow) this.rest(this, 1 / this.sends.limits.messages_per_s);
    } else if (again === undefined) {
      this.sends.refused(room, item, answer);
    } else if (answer.code === "rate_limited") {
      this.slow = this.sends.limits.messages_per_s !== null;
      this.rest(this, again);
    } else {
      this.sends.waits(item, answer.message);
      this.rest(room, again);
    }
    this.send();
  }

  // Sends nothing for so many seconds; who is a room, or all of them.
  rest(who, seconds) {
    who.resting = true;
    setTimeout(() => {
      who.resting = false;
      this.send();
    }, seconds * 1000);
  }
}

const isDue = ({ state }) => state === "sending" || state === "waiting";

// How one room looks

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const exactClock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const calendar = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const dayName = (time) => calendar.format(new Date(time));
const topOf = (row) => row.lastElementChild.getBoundingClientRect().top; // what stands above a line may change

function hue(name) {
  let hash = 0;
  for (const each of name) hash = (hash * 31 + each.codePointAt(0)) >>> 0;
  return `hue${hash % 12}`;
}

const URLS = /\bhttps?:\/\/[^\s<>"'`\u200e\u200f\u202a-\u202e\u2066-\u2069]+/giu;

const OPENS = { ")": "(", "]": "[", "}": "{" };

// Leaves to the sentence what ends it, and a bracket that was opened before the address. The brackets are counted once:
// others choose what stands in an address.
function trimmed(url) {
  const counts = {};
  for (const each of url) counts[each] = (counts[each] ?? 0) + 1;
  for (let end = url.length; ; end--) {
    const last = url[end - 1];
    const unbalanced = last in OPENS && (counts[OPENS[last]] ?? 0) < counts[last];
    if (!unbalanced && !".,;:!?…*_".includes(last)) return url.slice(0, end);
    counts[last]--;
  }
}

// URL.canParse, which Safari 16 and Firefox 114 do not have.
function isAddress(text) {
  try {
    return /^https?:$/.test(new URL(text).protocol);
  } catch {
    return false;
  }
}

function addLinks(parent, text) {
  let done = 0;
  for (const found of text.matchAll(URLS)) {
    if (found[0].length > ADDRESS) continue;
    const shown = trimmed(found[0]);
    if (!isAddress(shown)) continue;
    parent.append(text.slice(done, found.index));
    const link = make("a", "", shown);
    link.href = shown;
    link.rel = "noopener noreferrer nofollow";
    link.target = "_blank";
    parent.append(link);
    done = found.index + shown.length;
  }
  parent.append(text.slice(done));
}

function addCode(parent, text) {
  for (const [place, part] of text.split(/`([^`\n]+)`/).entries()) {
    if (place % 2) parent.append(make("code", "", part));
    else addLinks(parent, part);
  }
}

function addText(parent, text) {
  for (const [place, part] of text.split(/```(?:[\w+-]*\n)?([^]*?)\n?```/).entries()) {
    if (place % 2) parent.append(make("pre", "", part));
    else addCode(parent, part);
  }
}

const BEGINNING = { kind: "beginning" };

// Sets the time of a message, and with which others it stands together.
function dated(item, time) {
  item.time = time;
  item.minute = Math.floor(Date.parse(time) / 60_000);
  item.day = new Date(time).toDateString();
  item.author = `${item.own ? "" : item.session}\n${item.nick ?? ""}`;
  return item;
}

class Log {
  constructor(element, newest, chat) {
    this.element = element;
    this.button = newest;
    this.chat = chat;
    this.room = null;
    this.sticks = true; // to the end
    this.quiet = true; // whether what is drawn next is not to be read aloud
    this.redraw = soon(() => this.draw());
    element.addEventListener("scroll", () => this.scrolled(), { passive: true });
    newest.addEventListener("click", () => this.toNewest());
    new ResizeObserver(() => this.sticks && this.toEnd()).observe(element);
  }

  show(room) {
    this.room = room;
    this.quiet = true;
    this.toNewest();
  }

  toNewest() {
    const { room } = this;
    this.sticks = true;
    this.toEnd();
    this.drawSoon(room.detached);
    if (room.detached) room.forget();
  }

  // Draws with the next frame; quietly: what was said before is not read aloud.
  drawSoon(quietly = false) {
    this.quiet ||= quietly;
    this.redraw();
  }

  draw() {
    const { room, element } = this;
    const seen = this.sticks ? null : this.firstSeen();
    room.trim(seen?.place);
    if (this.quiet) element.setAttribute("aria-live", "off");
    const items = [...room.items, ...(room.detached ? [] : room.pending)];
    if (!room.older && room.joined) items.unshift(BEGINNING);
    update(element, items, (item) => item, (item) => this.row(item), (...those) => attempt(() => this.change(...those)));
    if (this.sticks) this.toEnd();
    else if (seen?.row.isConnected) element.scrollTop += topOf(seen.row) - seen.top;
    this.quiet = false;
    setTimeout(() => element.setAttribute("aria-live", "polite"));
    this.scrolled();
  }

  // The first row of which something is seen, its place among all of them, and where it is.
  firstSeen() {
    const rows = this.element.children, top = this.element.getBoundingClientRect().top;
    let place = 0;
    for (let end = rows.length - 1; place < end; ) {
      const middle = (place + end) >> 1;
      if (rows[middle].getBoundingClientRect().bottom > top) end = middle;
      else place = middle + 1;
    }
    const row = rows[place];
    return row && { row, place, top: topOf(row) };
  }

  // Others choose what is in a line: one that can't be drawn is shown as plain text.
  row(item) {
    const row = make("div", item.own ? "row own" : "row");
    row.append(attempt(() => this.body(item), () => this.plain(item)));
    return row;
  }

  plain(item) {
    const element = make("div", "message");
    element.append(make("div", "text", item.text));
    return element;
  }

  body(item) {
    if (item.kind === "beginning") return make("p", "beginning", "This is all that is kept of this room.");
    if (item.kind === "gap") {
      return make("p", "gap", `⚠ ${item.count === null ? "Some messages may be lost" : `${counted(item.count, "message")} lost`}`);
    }
    const element = make("div", item.action ? "message action" : "message"), text = make("div", "text");
    text.dir = "auto";
    addText(text, item.action ? `* ${item.nick} ${item.text}` : item.text);
    element.append(text);
    return element;
  }

  // Shows above a line what it begins (a day, what is new, what an author says in one minute), and in it how far it is.
  change(row, item, before) {
    const { marker } = this.room;
    const isMessage = item.kind === "message";
    if (!isMessage) item.day = before?.day; // the day goes on
    const day = isMessage && item.day !== before?.day;
    const isNew = marker !== null && after(item, marker) && !(before && after(before, marker));
    const follows = before?.kind === "message" && before.minute === item.minute && before.author === item.author;
    const head = isMessage && (day || isNew || !follows);
    const above = `${day && item.day} ${isNew} ${head && item.minute}`;
    if (row.dataset.above !== above) {
      row.dataset.above = above;
      while (row.childElementCount > 1) row.firstElementChild.remove();
      const parts = [day && make("p", "day", dayName(item.time)), isNew && make("p", "new", "New"), head && this.head(item)];
      row.prepend(...parts.filter(Boolean));
    }
    const state = item.state ?? (item.own ? "sent" : ""), body = row.lastElementChild;
    const below = `${state} ${item.reason ?? ""}`;
    if (!state || row.dataset.below === below) return;
    row.dataset.below = below;
    body.dataset.state = state;
    body.querySelector(".state")?.remove();
    body.append(this.state(item, state));
  }

  head(item) {
    const head = make("div", "head");
    const author = make("span", `author ${item.nick ? hue(item.nick) : "nobody"}`, item.nick ?? (item.own ? "you" : "somebody"));
    author.dir = "auto";
    const time = make("time", "", clock.format(new Date(item.time)));
    time.dateTime = item.time;
    head.append(author, time);
    return head;
  }

  state(item, state) {
    const element = make("span", "state");
    if (state === "sent") {
      const mark = make("span", "", "✓");
      mark.setAttribute("aria-hidden", "true");
      element.append(mark, make("span", "visually-hidden", "sent"));
    } else if (state === "sending") {
      element.textContent = "sending …";
    } else {
      const waits = state === "waiting"; // and goes by itself
      element.append(make("span", "reason", `Not sent${waits ? " yet" : ""}: ${item.reason}`));
      for (const [name, act] of [...(waits ? [] : [["Try again", "resend"]]), ["Delete", "discard"]]) {
        const button = make("button", "", name);
        button.type = "button";
        button.addEventListener("click", () => this.chat[act](item));
        element.append(button);
      }
    }
    return element;
  }

  // How many pixels are below what is seen.
  get left() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight;
  }

  toEnd() {
    this.element.scrollTop = this.element.scrollHeight;
  }

  scrolled() {
    const { room, element } = this;
    this.sticks = this.left < NEAR && !room.detached;
    this.button.hidden = this.sticks;
    if (element.scrollTop < AHEAD) this.chat.wantsOlder(room);
    if (this.left < AHEAD) this.chat.wantsNewer(room);
    this.chat.hasRead();
  }
}

// Where one shows one's token; what was typed is never shown

class Gate {
  constructor(bring) {
    find("new-token").addEventListener("click", () => this.open());
    find("bring").addEventListener("submit", (event) => {
      event.preventDefault();
      const token = find("token").value.replace(/\s/g, "");
      this.say("");
      if (isToken(token)) bring(token);
      else this.say("That is no token.");
    });
  }

  say(why) {
    find("why").textContent = why && `${why[0].toUpperCase()}${why.slice(1)}${why.endsWith(".") ? "" : "."}`;
  }

  // Asks whether to use another token; neither answer has the focus, so that no key gives it by chance.
  offer(use) {
    find("offered").textContent = "This link brings another token. With it you speak under the name that it has.";
    find("offer").hidden = false;
    find("use-offer").onclick = use;
    find("keep-token").onclick = () => {
      find("offer").hidden = true;
      find("text").focus();
    };
  }

  // Asks for a token; who is writing something else is not interrupted.
  ask(why) {
    this.open(!document.activeElement?.value);
    this.say(why);
  }

  // Says that a new one will be needed.
  warn(why) {
    find("new-token").hidden = !find("bring").hidden;
    this.say(why);
  }

  open(focus = true) {
    find("new-token").hidden = true;
    find("bring").hidden = false;
    if (focus) find("token").select();
  }

  close() {
    const leaves = find("gate").contains(document.activeElement);
    this.say("");
    find("token").value = "";
    find("new-token").hidden = find("bring").hidden = true;
    if (leaves) find("text").focus();
  }
}

// All of it

class Chat {
  constructor(here, brought) {
    this.token = [ours.get("token", ""), brought].find(isToken) ?? "";
    ours.set("token", this.token);
    const open = new Set([...ours.get("rooms", []), here]);
    this.rooms = new Map([...open].map((name) => [name, new Room(name)]));
    this.home = this.rooms.has(ours.get("home", "")) ? ours.get("home", "") : here; // whose URL we connect to
    this.key = ours.get("key", "") || this.newKey();
    this.wanted = lasting.get("nick", "");
    this.nick = null; // which need not be the one that we wanted
    this.session = null;
    this.limits = { message_bytes: Infinity, messages_per_s: null };
    this.counts = 0; // how often it was time to count the members of the room that is shown
    this.refs = new Map(); // what waits for an answer
    this.ref = 0;
    this.showRoomsSoon = soon(() => this.showRooms());
    this.showMembersSoon = soon(() => this.showMembers());
    this.log = new Log(find("messages"), find("newest"), this);
    this.outbox = new Outbox(this);
    this.gate = new Gate((token) => this.bring(token));
    this.link = new Link(this, () => this.address(), () => this.protocols());
    for (const { room, ...each } of ours.get("pending", [])) this.rooms.get(room)?.pending.push(dated(each, each.time));
    for (const [name, draft] of Object.entries(ours.get("drafts", {}))) {
      if (this.rooms.has(name)) this.rooms.get(name).draft = draft;
    }
    find("nick").value = this.wanted;
    this.listen();
    this.go(here, "replace");
    this.consider(brought);
    this.link.dial();
    if (!this.wanted && !this.token && matchMedia("(hover: hover)").matches) find("nick").focus();
  }

  newKey() {
    this.key = newId();
    ours.set("key", this.key);
    return this.key;
  }

  address() {
    const url = new URL(`/${encodeURIComponent(this.home)}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("last", PAGE);
    if (this.wanted) url.searchParams.set("nick", this.wanted);
    return url;
  }

  // A browser can send a key or a token in no other header of a handshake, and proxies log URLs.
  protocols() {
    return ["chatd.v1", `resume.${this.key}`, ...(this.token ? [`bearer.${this.token}`] : [])];
  }

  get(path) {
    const headers = { Accept: "application/json", ...(this.token && { Authorization: `Bearer ${this.token}` }) };
    return fetch(path, { headers, signal: AbortSignal.timeout(SILENCE) });
  }

  remember() {
    ours.set("rooms", [...this.rooms.keys()]);
    ours.set("home", this.home);
    const pending = [...this.rooms.values()].flatMap((room) => room.pending.map((each) => ({ room: room.name, ...each })));
    ours.set("pending", pending);
    ours.set("drafts", Object.fromEntries([...this.rooms.values()].map((room) => [room.name, room.draft])));
  }

  // What the person does

  listen() {
    find("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    find("text").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.submit();
      }
    });
    find("text").addEventListener("input", () => this.typed());
    find("nick").addEventListener("change", () => this.rename(find("nick").value.trim()));
    find("nick").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) {
        event.preventDefault();
        find("text").focus(); // and so the name is changed
      }
    });
    find("join").addEventListener("submit", (event) => {
      event.preventDefault();
      this.join(find("room").value);
    });
    find("room").addEventListener("focus", () => this.suggestRooms(), { once: true });
    find("open-rooms").addEventListener("click", (event) => this.clickedRoom(event));
    for (const [button, panel] of [["show-rooms", "rooms"], ["show-members", "here"]]) {
      find(button).addEventListener("click", () => this.slide(button, panel));
    }
    addEventListener("keydown", (event) => this.pressed(event));
    document.addEventListener("pointerdown", (event) => {
      if (!event.target.closest("nav, aside, .drawer")) this.slide();
    });
    addEventListener("popstate", () => {
      this.consider(takeToken());
      const name = roomHere();
      this.open(name);
      this.go(name, null);
    });
    document.addEventListener("visibilitychange", () => this.looked());
    addEventListener("focus", () => this.looked());
    addEventListener("blur", () => this.leftOff());
    addEventListener("online", () => this.link.dial());
    addEventListener("offline", () => this.link.drop());
    addEventListener("pagehide", () => this.remember());
    setInterval(() => this.countAgain(), COUNTED);
  }

  pressed(event) {
    if (event.key === "Escape") {
      this.slide();
      this.log.toNewest();
      find("text").focus();
    } else if (event.altKey && !event.ctrlKey && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      event.preventDefault();
      const names = [...this.rooms.keys()];
      const step = event.key === "ArrowUp" ? names.length - 1 : 1;
      this.go(names[(names.indexOf(this.room.name) + step) % names.length]);
    }
  }

  // Shows one side, on a screen that has no room for it; or none.
  slide(button = "", panel = "") {
    for (const [each, its] of [["show-rooms", "rooms"], ["show-members", "here"]]) {
      const opens = each === button && !find(its).classList.contains("open");
      find(its).classList.toggle("open", opens);
      find(each).setAttribute("aria-expanded", String(opens));
      if (opens) (find(panel).querySelector("a, button, input") ?? find(panel)).focus();
    }
  }

  clickedRoom(event) {
    const row = event.target.closest("li");
    if (!row || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    if (event.target.closest("button")) this.leave(row.dataset.room);
    else this.go(row.dataset.room);
  }

  async suggestRooms() {
    try {
      const { rooms } = await (await this.get("/-/rooms")).json();
      find("known-rooms").replaceChildren(
        ...rooms.map(({ room }) => {
          const option = make("option");
          option.value = room;
          return option;
        }),
      );
    } catch {
      // it was only to help
    }
  }

  typed() {
    const field = find("text");
    this.room.draft = field.value;
    this.hint("");
    if (!CSS.supports("field-sizing", "content")) {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight + 2}px`;
    }
  }

  submit() {
    const text = find("text").value.replace(/\r?\n$/, "");
    if (!text) return;
    const size = utf8(text), most = this.limits.message_bytes;
    if (size > most) {
      this.hint(`This message is too long: ${size.toLocaleString()} bytes; ${most.toLocaleString()} are allowed.`);
      return;
    }
    find("text").value = "";
    this.typed();
    this.say(this.room, text);
  }

  say(room, text) {
    const item = { kind: "message", own: true, state: "sending", offset: null, epoch: "", id: newId(), text };
    Object.assign(item, { session: this.session, nick: this.nick });
    room.pending.push(dated(item, new Date().toISOString()));
    room.marker = null; // who answers has read what was new
    this.log.toNewest();
    this.send(room, item);
    this.remember();
  }

  send(room, item) {
    if (room.barred) this.holdUp(item, "refused", room.barred);
    else this.outbox.send();
  }

  publish(room, { text, id }, answered) {
    return this.ask({ type: "publish", room: room.name, text, id }, answered);
  }

  said(room, item, { epoch, offset, time }) {
    room.pending = room.pending.filter((each) => each !== item);
    Object.assign(dated(item, time), { state: null, epoch, offset, session: this.session });
    room.hear(item);
    this.log.drawSoon();
    this.remember();
  }

  waits(item, reason) {
    this.holdUp(item, "waiting", reason);
  }

  refused(room, item, { code, message }) {
    this.holdUp(item, "refused", message);
    if (code !== "forbidden") return;
    room.mute = true;
    this.showRules();
  }

  holdUp(item, state, reason) {
    Object.assign(item, { state, reason });
    this.log.drawSoon();
    this.remember();
  }

  // The buttons of a message stay until the next frame: a second click may hit what is on its way again, or deleted.
  resend(item) {
    if (item.state !== "refused") return;
    const room = this.roomOf(item);
    Object.assign(dated(item, new Date().toISOString()), { state: "sending" });
    this.send(room, item);
    this.log.drawSoon();
    find("text").focus();
  }

  discard(item) {
    if (item.state !== "refused" && item.state !== "waiting") return;
    item.state = "deleted";
    const room = this.roomOf(item);
    room.pending = room.pending.filter((each) => each !== item);
    this.log.drawSoon();
    this.remember();
    find("text").focus();
  }

  roomOf(item) {
    return [...this.rooms.values()].find((room) => room.pending.includes(item));
  }

  rename(nick) {
    if (!nick) find("nick").value = this.nick ?? ""; // who has a name keeps one
    if (!nick || nick === this.nick) return;
    const before = this.wanted;
    this.want(nick);
    this.ask({ type: "nick", nick }, (answer) => {
      if (answer.type === "nick") {
        this.hint(answer.nick === nick ? "" : `${nick} is taken: you are ${answer.nick}.`);
        return;
      }
      this.want(before);
      if (answer.code === "forbidden") {
        find("nick").value = this.nick ?? "";
        this.fixName("Your name comes with your token.");
        return;
      }
      this.hint(answer.message);
      find("nick").focus();
    });
  }

  // Lets one's name not be changed, and says why; without a reason it may be.
  fixName(why = "") {
    find("nick").readOnly = why !== "";
    find("nick-rule").textContent = why;
  }

  want(nick) {
    this.wanted = nick;
    lasting.set("nick", nick);
  }

  named(nick) {
    this.nick = nick;
    if (nick === null) return;
    if (document.activeElement !== find("nick")) find("nick").value = nick;
    for (const room of this.rooms.values()) if (room.joined && room.count === null) room.members.set(this.session, nick);
    this.showMembersSoon();
  }

  // Tokens

  bring(token) {
    const answered = ({ type, message }) => (type === "auth" ? this.hold(token) : this.gate.say(message));
    if (this.ask({ type: "auth", token }, answered)) return;
    this.hold(token);
    this.link.dialAgain();
  }

  // A link may bring a token of somebody else: one replaces another only where the person says so.
  consider(token) {
    if (!token || token === this.token) return;
    const use = () => {
      ours.set("token", token);
      location.reload();
    };
    if (this.token) this.gate.offer(use);
    else use();
  }

  // Goes on with a token; it may allow more than the last one did.
  hold(token) {
    this.token = token;
    ours.set("token", token);
    this.fixName();
    for (const room of this.rooms.values()) {
      if (this.session && room.barred) this.enter(room);
      room.mute = false;
      room.barred = "";
    }
    this.showRules();
  }

  // The token is good for so many seconds, null is without end: asked for, or because it ends soon.
  lasts(seconds, asked) {
    if (asked) this.gate.close();
    if (asked && (seconds ?? Infinity) > SOON) return;
    this.gate.warn(`Your token runs out at ${exactClock.format(Date.now() + seconds * 1000)}.`);
  }

  bar(room, why) {
    room.joined = false;
    room.barred = why;
    room.count = null;
    room.members.clear();
    for (const item of room.pending) if (isDue(item)) this.holdUp(item, "refused", why);
    this.showMembersSoon();
    this.showRules();
  }

  // Rooms

  get room() {
    return this.log.room;
  }

  join(text) {
    const name = text.trim().replace(/^\//, "").normalize("NFC");
    if (!/^(?!-)[^\s/\p{C}\p{Default_Ignorable_Code_Point}\u2800]{1,64}$/u.test(name)) {
      find("room").setCustomValidity("1 to 64 characters, no spaces, no slash, not beginning with -");
      find("room").reportValidity();
      find("room").addEventListener("input", () => find("room").setCustomValidity(""), { once: true });
      return;
    }
    find("room").value = "";
    this.open(name);
    this.go(name);
  }

  open(name) {
    if (this.rooms.has(name)) return;
    const room = new Room(name);
    this.rooms.set(name, room);
    if (this.session) this.enter(room);
    else if (this.link.over && this.rooms.get(this.home).barred) {
      this.home = name; // this one may be open to us
      this.link.dialAgain();
    }
    this.remember();
  }

  go(name, how = "push") {
    const room = this.rooms.get(name);
    if (this.room && this.room !== room) this.leftOff();
    if (how) history[`${how}State`](null, "", name === "lobby" && location.pathname === "/" ? "/" : `/${encodeURIComponent(name)}`);
    find("name").textContent = name;
    find("text").value = room.draft;
    this.log.show(room);
    this.typed();
    this.slide();
    this.showMembers();
    this.showRules();
    this.looked();
    if (matchMedia("(hover: hover)").matches) find("text").focus();
    this.remember();
  }

  leave(name) {
    if (this.rooms.size === 1) return;
    const room = this.rooms.get(name);
    this.rooms.delete(name);
    if (room.joined) this.ask({ type: "leave", room: name }, () => {});
    if (this.home === name) this.home = [...this.rooms.keys()][0];
    if (this.room === room) this.go([...this.rooms.keys()][0]);
    this.showRooms();
    this.remember();
  }

  enter(room) {
    const { epoch, offset } = room.position ?? {};
    this.ask({ type: "join", room: room.name, since: epoch ? { epoch, offset } : { last: PAGE } }, (answer) => {
      if (answer.type !== "error") return;
      if (answer.code === "forbidden") {
        this.bar(room, answer.message);
        return;
      }
      this.hint(`${room.name}: ${answer.message}`);
      if (answer.retry_after !== undefined) setTimeout(() => this.session && this.enter(room), answer.retry_after * 1000);
    });
  }

  wantsOlder(room) {
    if (!room?.joined || !room.older || room.asking) return;
    const { oldest } = room;
    if (!room.position || (oldest && (oldest.epoch !== room.position.epoch || oldest.offset === 1))) {
      room.older = false;
      return;
    }
    this.fetch(room, oldest?.offset, (messages) => {
      if (oldest && room.oldest !== oldest) return; // it was forgotten meanwhile
      room.older = messages.filter((each) => this.insert(room, each)).length > 0;
    });
  }

  wantsNewer(room) {
    if (!room?.joined || !room.detached || room.asking) return;
    const last = room.items.at(-1), from = Math.floor(last.offset);
    this.fetch(room, from + PAGE + 1, (messages) => {
      if (!room.detached || room.items.at(-1) !== last) return;
      const next = messages.filter((each) => each.epoch === last.epoch && each.offset > from);
      if (next.length) {
        const { epoch, offset } = next[0], count = offset - from - 1;
        if (count) room.insert({ kind: "gap", epoch, offset: offset - 0.5, count });
        for (const each of next) this.insert(room, each);
        room.detached = after(room.position, room.items.at(-1));
      } else { // history does not have it any more, or another epoch has begun
        room.insert({ kind: "gap", epoch: last.epoch, offset: from + 0.5, count: null });
        room.detached = false;
        this.fetchRecent(room);
      }
    });
  }

  // Reads a page of history, one at a time; before an offset, or the newest.
  fetch(room, before, taken) {
    const request = { type: "history", room: room.name, limit: PAGE, ...(before && { before }) };
    room.asking = this.read(request, ({ messages }) => {
      room.asking = false;
      if (!messages) return;
      taken(messages);
      if (room === this.room) this.log.drawSoon(true);
    });
  }

  // Read, or not

  get watching() {
    return !document.hidden && document.hasFocus() && this.log.sticks;
  }

  looked() {
    this.hasRead();
    if (this.room.count !== null && !document.hidden) this.count(this.room);
    this.showRooms();
  }

  hasRead() {
    if (!this.watching || !this.room?.unread) return;
    this.room.unread = 0;
    this.showRoomsSoon();
  }

  // From here on messages are new, until the next time.
  leftOff() {
    if (!this.room || this.room.unread) return;
    this.room.marker = this.room.position;
    this.log.drawSoon();
  }

  // The link calls

  dialling() {
    this.status("connecting", "Connecting …");
  }

  waiting(seconds) {
    const when = seconds < 1 ? "now" : `in ${Math.ceil(seconds)} s`;
    this.status("offline", navigator.onLine ? `Offline: trying again ${when}` : "Offline: no network");
  }

  lost(code, reason) {
    this.session = null;
    this.refs.clear();
    this.outbox.lost();
    for (const room of this.rooms.values()) room.joined = room.asking = room.counting = false;
    if (code === TAKEN_OVER && reason.includes("resume key")) {
      this.newKey(); // this tab was duplicated
      return "at once";
    }
    if (code === TOKEN_OUT) return this.needsToken(reason);
    if (code === TAKEN_OVER) {
      this.status("offline", `Closed: ${reason}`);
      return false;
    }
    return true;
  }

  // A handshake that is refused looks like a server that is away: ask what is the matter.
  async turnedAway() {
    try {
      const answer = await this.get(`/${encodeURIComponent(this.home)}?last=0`);
      const token = answer.headers.has("WWW-Authenticate"); // it is about that
      if (!token || (answer.status !== 401 && answer.status !== 403)) return true;
      const { message } = await answer.json();
      return answer.status === 403 ? this.notLetIn(message) : this.needsToken(message);
    } catch {
      return true;
    }
  }

  needsToken(why) {
    this.gate.ask(why);
    this.status("offline", `Closed: ${why}`);
    return false;
  }

  notLetIn(why) {
    this.bar(this.rooms.get(this.home), why);
    const other = [...this.rooms.values()].find((each) => !each.barred);
    if (!other) return this.needsToken(why);
    this.home = other.name;
    return true;
  }

  ask(request, answered) {
    const ref = ++this.ref;
    if (!this.link.send({ ...request, ref })) return false;
    this.refs.set(ref, answered);
    return true;
  }

  // Asks on this connection until there is an answer: all pages behind one address may read only so much together.
  read(request, answered) {
    const { socket } = this.link;
    return this.ask(request, (answer) => {
      if (answer.retry_after === undefined) answered(answer);
      else setTimeout(() => socket === this.link.socket && this.read(request, answered), answer.retry_after * 1000 * (1 + Math.random()));
    });
  }

  received(event) {
    const answered = this.refs.get(event.ref);
    this.refs.delete(event.ref);
    const room = this.rooms.get(event.room);
    switch (event.type) {
      case "welcome":
        this.welcome(event);
        break;
      case "joined":
        if (!room) this.ask({ type: "leave", room: event.room }, () => {}); // it was left meanwhile
        else if (event.ref === undefined && room.position) this.enter(room); // we know where we were, the key may not
        else this.entered(room, event);
        break;
      case "message":
        if (room) this.heard(room, event);
        break;
      case "gap":
        if (room) this.missed(room, event.epoch, event.to, event.from === null ? null : event.to - event.from + 1);
        break;
      case "presence":
        if (room) this.present(room, event);
        break;
      case "members":
        if (room) this.here(room, event);
        break;
      case "nick":
        this.named(event.nick);
        break;
      case "auth":
        this.lasts(event.expires_in, event.ref !== undefined);
        break;
      case "left":
        if (room && event.ref === undefined) this.bar(room, "the token does not let you into this room");
        break;
      case "bye":
        this.status("offline", `Offline: ${event.reason}`);
        break;
    }
    answered?.(event);
  }

  welcome({ session, nick, limits }) {
    this.session = session;
    this.limits = limits;
    this.gate.close();
    this.named(nick);
    this.status("online", "Connected");
    for (const room of this.rooms.values()) {
      if (room.name !== this.home) this.enter(room);
    }
  }

  entered(room, { epoch, offset, lost, recovered, messages }) {
    const first = !room.position;
    room.joined = true;
    room.barred = "";
    room.rank(epoch);
    const from = messages[0];
    if (!recovered && !first) this.missed(room, from?.epoch ?? epoch, (from?.offset ?? offset + 1) - 1, lost);
    for (const each of messages) this.heard(room, each, first);
    if (first && offset) this.fetchRecent(room);
    this.outbox.send();
    this.count(room);
    this.showRules();
    if (room === this.room) this.log.drawSoon(true);
  }

  // What is given on entering is what others said, and after a reload only what was missed: see also the rest.
  fetchRecent(room) {
    this.read({ type: "history", room: room.name, limit: PAGE }, ({ messages = [] }) => {
      const added = messages.filter((each) => this.insert(room, each));
      if (added.length && room === this.room) this.log.drawSoon(true);
    });
  }

  insert(room, event) {
    return room.insert(this.message(event));
  }

  message(event) {
    return dated({ ...event, kind: "message", own: event.session === this.session, state: null }, event.time);
  }

  heard(room, event, quietly = false) {
    const { position } = room;
    if (!room.hear(this.message(event))) return;
    if (!(room === this.room && this.watching) && !quietly) {
      if (!room.unread) room.marker = position;
      room.unread++;
      this.showRoomsSoon();
    }
    if (room === this.room) this.log.drawSoon(quietly);
    // Where one reads further up, the next frame knows what is far from there; a page that is not seen has none.
    if (room !== this.room || this.log.sticks) room.trim();
    else if (room.items.length > 2 * SHOWN) room.trim(0);
  }

  missed(room, epoch, offset, count) {
    if (count === 0) return;
    const newest = room.position?.epoch === epoch ? room.position.offset : 0;
    room.hear({ kind: "gap", epoch, offset: (offset ?? newest) + 0.5, count });
    if (room === this.room) this.log.drawSoon(true);
  }

  // Asks who is in a room.
  count(room) {
    if (!room.joined || room.counting) return;
    room.counting = this.read({ type: "members", room: room.name }, () => (room.counting = false));
  }

  // Nobody is told who comes and goes in a room of too many, nor that there are too many by now.
  countAgain() {
    this.counts++;
    const { room } = this;
    if (!document.hidden && (room.count !== null || this.counts % LISTED === 0)) this.count(room);
  }

  present(room, { event, session, nick }) {
    if (room.count !== null) return; // who else is there is not known
    if (event === "leave") room.members.delete(session);
    else room.members.set(session, nick);
    if (room === this.room) this.showMembersSoon();
  }

  here(room, { members, count }) {
    room.count = members ? null : count;
    room.members = new Map((members ?? []).map(({ session, nick }) => [session, nick]));
    if (room === this.room) this.showMembersSoon();
  }

  // What is shown beside the messages

  status(state, text) {
    find("status").dataset.state = state;
    find("status").textContent = text;
    find("status").title = text;
  }

  hint(text) {
    find("hint").textContent = text;
  }

  showRules() {
    const { barred, mute } = this.room;
    find("room-rule").textContent = barred ? `You are not in this room: ${barred}.` : mute ? "You may only read here." : "";
  }

  showRooms() {
    const rooms = [...this.rooms.values()];
    update(find("open-rooms"), rooms, (room) => room.name, (room) => this.roomRow(room), (row, room) => {
      const [link, close] = row.children, unread = link.lastElementChild;
      if (room === this.room) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
      unread.hidden = !room.unread;
      unread.firstElementChild.textContent = room.unread;
      close.hidden = rooms.length === 1;
    });
    const unread = rooms.reduce((sum, room) => sum + room.unread, 0);
    const elsewhere = unread - this.room.unread;
    find("elsewhere").textContent = elsewhere;
    find("elsewhere").hidden = !elsewhere;
    document.title = `${unread ? `(${unread}) ` : ""}${this.room.name} - chatd`;
  }

  roomRow(room) {
    const row = make("li"), link = make("a"), name = make("span", "name", room.name);
    const unread = make("span", "unread"), close = make("button", "", "×");
    row.dataset.room = room.name;
    link.href = `/${encodeURIComponent(room.name)}`;
    link.title = room.name;
    name.dir = "auto";
    unread.append(make("span"), make("span", "visually-hidden", " new"));
    link.append(name, unread);
    close.type = "button";
    close.setAttribute("aria-label", `Leave ${room.name}`);
    row.append(link, close);
    return row;
  }

  showMembers() {
    const { members, count } = this.room;
    const names = [...members].filter(([, nick]) => nick).sort(([, one], [, other]) => one.localeCompare(other));
    const nameless = members.size - names.length;
    update(find("members"), names, ([session]) => session, () => make("li"), (row, [session, nick]) => {
      const shown = session === this.session ? `${nick} (you)` : nick;
      if (row.textContent === shown) return;
      row.className = hue(nick);
      row.dir = "auto";
      row.textContent = shown;
    });
    find("count").textContent = count ?? members.size;
    const others = nameless && `${nameless} ${names.length ? "more " : ""}without a name`;
    find("nameless").textContent = count === null ? others || "" : `${counted(count, "member")}: too many to be listed`;
  }
}

// What is shown in place of a chat where the address names no room.
function showNowhere() {
  const lobby = make("a", "", "Go to the lobby");
  lobby.href = "/";
  find("why").append(`This address names no room: ${location.pathname}. `, lobby);
  find("status").dataset.state = "offline";
  find("status").textContent = "Not connected";
  find("join").hidden = find("composer").hidden = true;
}

const brought = takeToken();
const here = roomHere();
if (here === null) showNowhere();
else new Chat(here, brought);
