// The chat page: several rooms over one WebSocket that speaks chatd.v1, to where the page came from.
//
// `Link` dials, again and again; `Room` holds what was said in one room, in its order; `Log` shows one room; `Gate` asks
// for a token; `Chat` puts them together. Whatever comes from somebody else is text: it is shown by textContent alone.

const SHOWN = 1000; // messages that are kept of a room; older ones are fetched again by scrolling up
const PAGE = 50; // messages of history that are fetched at once
const ADDRESS = 2048; // characters that an address has at most; a longer one is text
const NEAR = 48; // pixels from the end within which one reads along
const SILENCE = 10_000; // milliseconds without an answer after which the link is dead
const SOON = 60; // seconds before its end in which a token is to be replaced
const TAKEN_OVER = 1008, TOKEN_OUT = 4001, GIVEN_UP = 0; // the last one is our own: nobody sends it

const find = (id) => document.getElementById(id);

function make(tag, className = "", text = null) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.textContent = text;
  return element;
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
    this.items = []; // messages and gaps, in their order
    this.known = new Set(); // EPOCH-OFFSET
    this.pending = []; // of our own, not in the order yet
    this.members = new Map();
    this.count = null; // where they are too many to be listed
    this.older = true; // whether history may have more
    this.asking = false;
    this.unread = 0;
    this.marker = null; // behind which item one left off
    this.draft = "";
    this.barred = ""; // why one may not read here
    this.mute = false; // whether one may only read here
  }

  // Where it stands, as far as we have come: a gap stands half an offset behind the last message that is lost.
  get position() {
    const newest = this.items.at(-1);
    return newest && { epoch: newest.epoch, offset: Math.floor(newest.offset) };
  }

  rank(epoch) {
    let rank = this.epochs.indexOf(epoch);
    if (rank < 0) rank = this.epochs.push(epoch) - 1;
    return rank;
  }

  // Gives where it was put, or -1 where it was there already.
  add(item) {
    if (item.kind === "message") {
      const key = `${item.epoch}-${item.offset}`;
      if (this.known.has(key)) return -1;
      this.known.add(key);
    }
    item.rank = this.rank(item.epoch);
    let place = this.items.length;
    while (place > 0 && after(this.items[place - 1], item)) place--;
    this.items.splice(place, 0, item);
    return place;
  }

  // Forgets the oldest; gives whether there were too many.
  trim() {
    const extra = this.items.length - SHOWN;
    if (extra < SHOWN / 10) return false;
    for (const each of this.items.splice(0, extra)) this.known.delete(`${each.epoch}-${each.offset}`);
    this.older = true;
    return true;
  }
}

const after = (one, other) => one.rank > other.rank || (one.rank === other.rank && one.offset > other.offset);

// How one room looks

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const exactClock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const calendar = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const dayOf = (time) => new Date(time).toDateString();

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

class Log {
  constructor(element, newest, chat) {
    this.element = element;
    this.button = newest;
    this.chat = chat;
    this.room = null;
    this.drawn = null; // the last item that stands there
    this.due = false;
    this.whole = true;
    this.sticks = true; // to the end
    element.addEventListener("scroll", () => this.scrolled(), { passive: true });
    newest.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.sticks && this.toEnd()).observe(element);
  }

  show(room) {
    this.room = room;
    this.sticks = true;
    this.drawSoon(true);
  }

  // Draws with the next frame, however much comes until then; whole: not only what is new at the end.
  drawSoon(whole = false) {
    this.whole ||= whole;
    if (this.due) return;
    this.due = true;
    // A page that nobody sees has no frames.
    if (document.hidden) setTimeout(() => this.draw());
    else requestAnimationFrame(() => this.draw());
  }

  draw() {
    if (!this.due) return;
    this.due = false;
    const { room, element } = this;
    if (this.sticks && room.trim()) this.whole = true;
    const start = this.whole ? 0 : room.items.lastIndexOf(this.drawn) + 1;
    const anchor = this.whole && !this.sticks && this.anchor();
    if (this.whole) {
      element.setAttribute("aria-live", "off"); // what was read once is not read aloud again
      element.replaceChildren();
      this.group = this.day = null;
      if (!room.older && room.joined) element.append(make("p", "beginning", "This is all that is kept of this room."));
    } else {
      for (const each of element.querySelectorAll(".pending")) each.remove();
    }
    this.group = this.group?.isConnected ? this.group : null;
    for (const item of room.items.slice(start)) this.append(item);
    this.drawn = room.items.at(-1) ?? null;
    const said = { group: this.group, author: this.author, minute: this.minute, day: this.day };
    for (const each of room.pending) this.append(each);
    Object.assign(this, said); // what is pending is drawn anew
    if (this.sticks) this.toEnd();
    else if (anchor) this.hold(anchor);
    this.whole = false;
    setTimeout(() => element.setAttribute("aria-live", "polite"));
    this.scrolled();
  }

  // The first message that is seen, and where.
  anchor() {
    const { element } = this;
    const first = [...element.querySelectorAll(".message")].find(
      (each) => each.offsetTop + each.offsetHeight > element.scrollTop,
    );
    return first && { id: first.dataset.id, at: first.offsetTop - element.scrollTop };
  }

  hold({ id, at }) {
    const again = this.element.querySelector(`[data-id="${CSS.escape(id)}"]`);
    if (again) this.element.scrollTop = again.offsetTop - at;
  }

  append(item) {
    const { element, room } = this;
    if (item.kind === "gap") {
      element.append(make("p", "gap", `⚠ ${item.count === null ? "Some messages may be lost" : `${counted(item.count, "message")} lost`}`));
      this.group = null;
    } else {
      this.appendMessage(item);
    }
    if (room.marker === item && (item !== room.items.at(-1) || room.unread)) {
      element.append(make("p", "new", "New"));
      this.group = null;
    }
  }

  appendMessage(item) {
    const minute = Math.floor(Date.parse(item.time) / 60_000);
    const author = `${item.own ? "" : item.session}\n${item.nick ?? ""}`;
    if (this.day !== dayOf(item.time)) {
      this.day = dayOf(item.time);
      this.element.append(make("p", item.state ? "day pending" : "day", calendar.format(new Date(item.time))));
      this.group = null;
    }
    if (!this.group || this.author !== author || this.minute !== minute) this.startGroup(item);
    this.author = author;
    this.minute = minute;
    this.group.append(this.message(item));
  }

  startGroup(item) {
    const own = item.own;
    this.group = make("div", own ? "group own" : "group");
    const head = make("div", "head");
    const author = make("span", `author ${item.nick ? hue(item.nick) : "nobody"}`, item.nick ?? (own ? "you" : "somebody"));
    author.dir = "auto";
    const time = make("time", "", clock.format(new Date(item.time)));
    time.dateTime = item.time;
    head.append(author, time);
    this.group.append(head);
    if (item.state) this.group.classList.add("pending");
    this.element.append(this.group);
  }

  message(item) {
    const element = make("div", item.action ? "message action" : "message");
    element.dataset.id = item.id;
    if (item.offset !== null) element.dataset.offset = item.offset;
    const text = make("div", "text");
    text.dir = "auto";
    addText(text, item.action ? `* ${item.nick} ${item.text}` : item.text);
    element.append(text);
    const state = item.state ?? (item.own ? "sent" : "");
    if (state) {
      element.dataset.state = state;
      element.append(this.state(item, state));
      if (item.state) element.classList.add("pending");
    }
    return element;
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
      element.append(make("span", "reason", `Not sent: ${item.reason}`));
      for (const [name, act] of [["Try again", "resend"], ["Delete", "discard"]]) {
        const button = make("button", "", name);
        button.type = "button";
        button.addEventListener("click", () => this.chat[act](item));
        element.append(button);
      }
    }
    return element;
  }

  get atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  toEnd() {
    this.element.scrollTop = this.element.scrollHeight;
  }

  scrolled() {
    this.sticks = this.atEnd;
    this.button.hidden = this.sticks;
    if (this.element.scrollTop < 300) this.chat.wantsOlder(this.room);
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
    this.limits = { message_bytes: Infinity };
    this.refs = new Map(); // what waits for an answer
    this.ref = 0;
    this.log = new Log(find("messages"), find("newest"), this);
    this.gate = new Gate((token) => this.bring(token));
    this.link = new Link(this, () => this.address(), () => this.protocols());
    for (const { room, ...each } of ours.get("pending", [])) this.rooms.get(room)?.pending.push(each);
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
  }

  pressed(event) {
    if (event.key === "Escape") {
      this.slide();
      this.log.toEnd();
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
    Object.assign(item, { session: this.session, nick: this.nick, time: new Date().toISOString() });
    room.pending.push(item);
    this.log.sticks = true;
    this.transmit(room, item);
    this.log.drawSoon(room.marker !== null); // who answers has read what was new
    room.marker = null;
    this.remember();
  }

  transmit(room, item) {
    if (room.barred) this.refused(item, room.barred);
    if (room.barred || !room.joined) return; // it is sent when we are in
    this.ask({ type: "publish", room: room.name, text: item.text, id: item.id }, (answer) => {
      if (answer.type === "ack") this.said(room, item, answer);
      else this.refused(item, answer.message);
      if (answer.code !== "forbidden") return;
      room.mute = true;
      this.showRules();
    });
  }

  said(room, item, { epoch, offset, time }) {
    room.pending = room.pending.filter((each) => each !== item);
    const place = room.add({ ...item, state: null, epoch, offset, time, session: this.session });
    if (room === this.log.room) this.log.drawSoon(place >= 0 && place < room.items.length - 1);
    this.remember();
  }

  refused(item, reason) {
    Object.assign(item, { state: "refused", reason });
    this.log.drawSoon();
    this.remember();
  }

  // The buttons of a message stay until the next frame: a second click may hit what is on its way again, or deleted.
  resend(item) {
    if (item.state !== "refused") return;
    const room = this.roomOf(item);
    Object.assign(item, { state: "sending", time: new Date().toISOString() });
    this.transmit(room, item);
    this.log.drawSoon();
    find("text").focus();
  }

  discard(item) {
    if (item.state !== "refused") return;
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
    for (const room of this.rooms.values()) if (room.joined) room.members.set(this.session, nick);
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
    room.members.clear();
    for (const item of room.pending) if (item.state === "sending") this.refused(item, why);
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
    this.ask({ type: "join", room: room.name, since: room.position ?? { last: PAGE } }, (answer) => {
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
    const oldest = room.items.find((each) => each.kind === "message");
    if (!oldest || oldest.epoch !== room.position.epoch || oldest.offset === 1) {
      room.older = false;
      return;
    }
    room.asking = true;
    const request = { type: "history", room: room.name, before: oldest.offset, limit: PAGE };
    this.read(request, ({ type, messages }) => {
      room.asking = false;
      if (type !== "history") return;
      const before = room.items.length;
      for (const each of messages) this.take(room, each);
      room.older = room.items.length > before;
      if (room === this.room) this.log.drawSoon(true);
    }) || (room.asking = false);
  }

  // Read, or not

  get watching() {
    return !document.hidden && document.hasFocus() && this.log.sticks;
  }

  looked() {
    this.hasRead();
    this.showRooms();
  }

  hasRead() {
    if (!this.watching || !this.room?.unread) return;
    this.room.unread = 0;
    this.showRooms();
  }

  // From here on messages are new, until the next time.
  leftOff() {
    if (!this.room || this.room.unread) return;
    this.room.marker = this.room.items.at(-1) ?? null;
    this.log.drawSoon(true);
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
    for (const room of this.rooms.values()) room.joined = room.asking = false;
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
    for (const item of room.pending) if (item.state === "sending") this.transmit(room, item);
    this.read({ type: "members", room: room.name }, () => {});
    this.showRules();
    if (room === this.room) this.log.drawSoon(true);
  }

  // What is given on entering is what others said, and after a reload only what was missed: see also the rest.
  fetchRecent(room) {
    this.read({ type: "history", room: room.name, limit: PAGE }, ({ messages = [] }) => {
      const added = messages.filter((each) => this.take(room, each) >= 0);
      if (added.length && room === this.room) this.log.drawSoon(true);
    });
  }

  take(room, event) {
    return room.add({ ...event, kind: "message", own: event.session === this.session, state: null });
  }

  heard(room, event, quietly = false) {
    const place = this.take(room, event);
    if (place < 0) return;
    let whole = place < room.items.length - 1;
    if (!(room === this.room && this.watching) && !quietly) {
      if (!room.unread) {
        room.marker = room.items[place - 1] ?? null;
        whole = true;
      }
      room.unread++;
      this.showRooms();
    }
    if (room === this.room) this.log.drawSoon(whole);
    else room.trim();
  }

  missed(room, epoch, offset, count) {
    if (count === 0) return;
    const newest = room.items.findLast((each) => each.epoch === epoch)?.offset ?? 0;
    room.add({ kind: "gap", epoch, offset: (offset ?? newest) + 0.5, count });
    if (room === this.room) this.log.drawSoon(true);
  }

  present(room, { event, session, nick }) {
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
    const rows = [...this.rooms.values()].map((room) => {
      const row = make("li"), link = make("a"), name = make("span", "name", room.name);
      row.dataset.room = room.name;
      link.href = `/${encodeURIComponent(room.name)}`;
      link.title = room.name;
      name.dir = "auto";
      link.append(name);
      if (room === this.room) link.setAttribute("aria-current", "page");
      if (room.unread) {
        const unread = make("span", "unread", room.unread);
        unread.append(make("span", "visually-hidden", " new"));
        link.append(unread);
      }
      row.append(link);
      if (this.rooms.size > 1) {
        const close = make("button", "", "×");
        close.type = "button";
        close.setAttribute("aria-label", `Leave ${room.name}`);
        row.append(close);
      }
      return row;
    });
    const focused = document.activeElement?.closest("#open-rooms li")?.dataset.room;
    find("open-rooms").replaceChildren(...rows);
    if (focused) rows.find((row) => row.dataset.room === focused)?.querySelector("a").focus();
    const unread = [...this.rooms.values()].reduce((sum, room) => sum + room.unread, 0);
    const elsewhere = unread - this.room.unread;
    find("elsewhere").textContent = elsewhere;
    find("elsewhere").hidden = !elsewhere;
    document.title = `${unread ? `(${unread}) ` : ""}${this.room.name} - chatd`;
  }

  showMembersSoon() {
    if (this.membersDue) return;
    this.membersDue = true;
    setTimeout(() => {
      this.membersDue = false;
      this.showMembers();
    });
  }

  showMembers() {
    const { members, count } = this.room;
    const names = [...members].filter(([, nick]) => nick).sort(([, one], [, other]) => one.localeCompare(other));
    const nameless = members.size - names.length;
    find("members").replaceChildren(
      ...names.map(([session, nick]) => {
        const row = make("li", hue(nick), nick);
        row.dir = "auto";
        if (session === this.session) row.append(" (you)");
        return row;
      }),
    );
    find("count").textContent = count ?? members.size;
    const others = nameless && `${nameless} ${names.length ? "more " : ""}without a name`;
    find("nameless").textContent = count === null ? others || "" : counted(count, "member");
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
