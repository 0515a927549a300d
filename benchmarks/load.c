/* load: thousands of clients on loopback, WebSockets and followers of events, that send, receive and check.
 *
 * Connects N clients, of which the first S send. A message is a text frame that
 * begins with a stamp of 16 characters (who sent it, its number, when it was due)
 * and goes on with a fill every receiver knows; so each receiver can tell whether
 * it got each message of each sender in its room once, whole and in order, and how
 * long after it was due. Prints one JSON object on stdout; says what stopped it on
 * stderr, with exit status 1. `load --help` lists the options.
 *
 * Closed loop (--window W): at most W messages are on their way, where a message is
 * on its way until the last of its receivers has it.
 * Open loop (--rate R): message n is due n/R seconds after the start, and its stamp
 * says so however late it can be written: waiting to be sent is latency too.
 *
 * With --processes P, client i lives in process i mod P. The parent only keeps time
 * and adds up; what all must know stands on a board in shared memory.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
  STAMP = 16,              /* characters: 3 for the sender, 5 for its number, 8 for nanoseconds */
  SENDERS_MOST = 1 << 18,  /* 3 characters of 6 bits */
  SIZE_MOST = 16384,       /* bytes of a payload */
  READ_BYTES = 1 << 18,    /* one read; no frame may be longer */
  OUT_BYTES = 1 << 16,     /* a sender with more than this unwritten waits */
  BURST = 4096,            /* messages framed before the sockets are looked at again */
  TAKEN_UP = 16384,        /* the longest answer to a handshake */
  PROCESSES_MOST = 64,
  SUB_BITS = 7,            /* the histogram tells values apart to one part in 2^SUB_BITS */
  BUCKETS = (64 - SUB_BITS + 2) << (SUB_BITS - 1),
};

static const uint64_t SECOND = 1000000000;
static const char *KEY = "dGhlIHNhbXBsZSBub25jZQ==", *ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="; /* RFC 6455, 1.3 */

static struct {
  int port, processes, parallel;
  uint32_t clients, senders, rooms, stopped, json, sse, size, window;
  double rate, seconds, warmup, settle, patience, drain;
  const char *path, *send_path, *subprotocol;
  bool apart, echo, hold, phases;
} opt = {
    .processes = 1, .parallel = 128, .clients = 2, .senders = 1, .rooms = 1, .size = 64,
    .seconds = 3, .warmup = 0.5, .settle = 0.2, .patience = 2, .drain = 20, .path = "/",
};

/* What one receiver knows of one sender: its newest number, and which of the 64 up to it came (bit 0: the newest). */
typedef struct {
  uint64_t seen;
  uint32_t newest;
} Track;

enum State { UNBORN, DIALLING, SHAKING, OPEN, CLOSED };
enum Chunk { LENGTH, EXTENSION, DATA, DATA_END, LAST }; /* what of a chunked body comes next (RFC 9112, 7.1) */

typedef struct {
  int fd;
  uint32_t index, room;
  uint8_t state, chunk;
  bool sends, receives, stops, json, sse, armed, listed;
  uint32_t number;     /* of the newest message it framed */
  uint32_t owed;       /* messages due that are not framed yet */
  uint32_t chunk_left; /* bytes */
  uint32_t rest_used, rest_cap, out_from, out_to, out_cap;
  uint8_t *rest, *out; /* the start of a frame or event that is not all there yet; bytes to write */
  Track *tracks;       /* one for each sender in its room */
} Client;

/* What one process tells the parent. The atomics are read while it runs, the rest when it has ended. */
typedef struct {
  _Alignas(64) _Atomic uint64_t connected, sent, expected, delivered;
  _Atomic bool told_all, over;
  uint64_t connected_at;
  uint64_t duplicates, disorder, gaps, foreign, echoes, aside, unsent, closed, pings;
  uint64_t sent_in_time, delivered_in_time, longest, lag, dial_cpu, busy_cpu, busy_wall;
  uint32_t close_code;
  uint64_t histogram[BUCKETS];
} Share;

typedef struct {
  uint64_t base;                          /* the zero of the stamps */
  _Atomic uint64_t begin, measure, stop;  /* nanoseconds of CLOCK_MONOTONIC; 0: not known yet */
  _Atomic bool finish;
  _Alignas(64) _Atomic int64_t on_their_way;
  Share shares[];
} Board;

static Board *board;
static _Atomic uint32_t *waited_for; /* closed loop: receivers that still lack a message, by sender and number */
static uint32_t ring;                /* numbers of one sender that can be on their way at once, a power of two */
static uint64_t began;

static Share *mine;
static uint32_t self, count, senders_here;
static Client *clients;
static int epoll, timer;
static uint8_t fill[SIZE_MOST], *incoming;
static uint64_t random_state;

_Noreturn static void die(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn static void die(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("load: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  _exit(1);
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static uint64_t cpu_time(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static void *room_for(void *old, size_t bytes) {
  void *got = realloc(old, bytes ? bytes : 1);
  if (!got) die("out of memory");
  return got;
}

static uint32_t share_of(uint32_t total, uint32_t parts, uint32_t which) { return total / parts + (which < total % parts); }

/* The histogram: values below 2^SUB_BITS have a bucket each, above that each power of two has 2^(SUB_BITS-1). */

static size_t bucket_of(uint64_t value) {
  if (value < 1 << SUB_BITS) return value;
  int shift = 64 - SUB_BITS - __builtin_clzll(value);
  return ((size_t)shift << (SUB_BITS - 1)) + (value >> shift);
}

static uint64_t top_of(size_t bucket) { /* the greatest value it holds */
  if (bucket < 1 << SUB_BITS) return bucket;
  int shift = (int)(bucket >> (SUB_BITS - 1)) - 1;
  return (((bucket & ((1 << (SUB_BITS - 1)) - 1)) + (1 << (SUB_BITS - 1)) + 1) << shift) - 1;
}

static uint64_t percentile(const uint64_t *histogram, uint64_t total, double part) {
  uint64_t wanted = (uint64_t)ceil(part * (double)total), passed = 0;
  for (size_t i = 0; i < BUCKETS && total; i++)
    if ((passed += histogram[i]) >= wanted) return top_of(i);
  return 0;
}

static void print_latency(const uint64_t *histogram, uint64_t longest) {
  uint64_t total = 0;
  for (size_t i = 0; i < BUCKETS; i++) total += histogram[i];
  double part[] = {.5, .99, .999};
  const char *name[] = {"p50", "p99", "p99.9"};
  printf("{");
  for (int i = 0; i < 3; i++) {
    uint64_t value = percentile(histogram, total, part[i]);
    printf("\"%s\": %.6f, ", name[i], (double)(value < longest ? value : longest) / 1e6);
  }
  printf("\"max\": %.6f}", (double)longest / 1e6);
}

/* The stamp: base 64, so that 16 characters say all. */

static const char DIGITS[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
static uint8_t value_of[256];

static void put_digits(uint8_t *at, int digits, uint64_t value) {
  while (digits--) at[digits] = (uint8_t)DIGITS[value & 63], value >>= 6;
}

static uint64_t take_digits(const uint8_t *at, int digits, uint8_t *bad) {
  uint64_t value = 0;
  for (int i = 0; i < digits; i++) {
    uint8_t digit = value_of[at[i]];
    *bad |= digit;
    value = value << 6 | (digit & 63);
  }
  return value;
}

/* Out: frames are put behind one another and written together. */

static uint32_t random_mask(void) { /* xorshift64* */
  random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
  return (uint32_t)(random_state * 2685821657736338717ull >> 32);
}

static void watch(Client *c, bool writable) {
  bool deaf = c->stops && c->state == OPEN; /* what comes stays in the kernel; that it was hung up on is heard */
  struct epoll_event event = {.events = (deaf ? EPOLLRDHUP : EPOLLIN) | (writable ? EPOLLOUT : 0), .data.ptr = c};
  if (epoll_ctl(epoll, c->state == DIALLING ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &event)) die("epoll_ctl: %s", strerror(errno));
  c->armed = writable;
}

static void hang_up(Client *c) {
  if (c->state == CLOSED) return;
  if (c->state != OPEN) die("the server closed a connection during its handshake");
  close(c->fd);
  c->state = CLOSED;
  mine->closed++;
  mine->unsent += c->owed;
  c->owed = 0;
}

static void flush(Client *c) {
  while (c->out_from < c->out_to) {
    ssize_t wrote = write(c->fd, c->out + c->out_from, c->out_to - c->out_from);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0 && errno != EAGAIN) return hang_up(c);
    if (wrote < 0) break;
    c->out_from += (uint32_t)wrote;
  }
  if (c->out_from == c->out_to) c->out_from = c->out_to = 0;
  if (c->armed != (c->out_to > 0)) watch(c, c->out_to > 0);
}

static void frame(Client *c, uint8_t opcode, const uint8_t *head, size_t head_size, size_t size) {
  size_t need = c->out_to + 14 + size;
  if (need > c->out_cap) c->out = room_for(c->out, c->out_cap = (uint32_t)(need * 2));
  uint8_t *p = c->out + c->out_to;
  *p++ = 0x80 | opcode;
  if (size < 126) *p++ = 0x80 | (uint8_t)size;
  else *p++ = 0x80 | 126, *p++ = (uint8_t)(size >> 8), *p++ = (uint8_t)size;
  uint32_t mask = random_mask();
  uint64_t wide = mask | (uint64_t)mask << 32, word;
  memcpy(p, &mask, 4);
  p += 4;
  memcpy(p, head, head_size);
  if (size > head_size) memcpy(p + head_size, fill + head_size, size - head_size);
  size_t i = 0;
  for (; i + 8 <= size; i += 8) memcpy(&word, p + i, 8), word ^= wide, memcpy(p + i, &word, 8);
  for (; i < size; i++) p[i] ^= (uint8_t)(mask >> 8 * (i & 3));
  c->out_to = (uint32_t)(p + size - c->out);
}

static uint32_t members(uint32_t room) { /* that receive */
  uint32_t all = share_of(opt.clients, opt.rooms, room), sending = share_of(opt.senders, opt.rooms, room);
  return (opt.apart ? all - sending : all) - opt.stopped; /* in one room, where any are */
}

static uint32_t reach(const Client *c) { return members(c->room) - (opt.apart || opt.echo ? 0 : 1); }

static uint64_t due(const Client *c, uint32_t number) { /* of a sender's message in the open loop, from 1 */
  return board->begin + (uint64_t)(((double)(number - 1) * opt.senders + c->index) * 1e9 / opt.rate);
}

static int room_name(const Client *c, char *name, int most) { /* as its path says; gives its length */
  const char *path = (c->sends && opt.send_path ? opt.send_path : opt.path) + 1, *hole = strstr(path, "{}");
  int end = (int)strcspn(path, "?");
  if (!end) return snprintf(name, (size_t)most, "lobby");
  if (!hole || hole > path + end) return snprintf(name, (size_t)most, "%.*s", end, path);
  return snprintf(name, (size_t)most, "%.*s%u%.*s", (int)(hole - path), path, c->room, end - (int)(hole - path) - 2, hole + 2);
}

static void publish(Client *c, const uint8_t *stamp) { /* as chatd.v1 has it */
  static char text[SIZE_MOST + 256];
  char room[128];
  room_name(c, room, sizeof room);
  int n = snprintf(text, 256, "{\"type\":\"publish\",\"room\":\"%s\",\"text\":\"", room);
  memcpy(text + n, stamp, STAMP);
  memcpy(text + n + STAMP, fill + STAMP, opt.size - STAMP);
  n += (int)opt.size;
  memcpy(text + n, "\"}", 2);
  frame(c, 1, (uint8_t *)text, (size_t)n + 2, (size_t)n + 2);
}

static void post(Client *c, uint64_t time) { /* frame the next message that is owed */
  uint32_t number = ++c->number, receivers = reach(c);
  uint64_t when = opt.window ? time : due(c, number);
  uint8_t stamp[STAMP];
  put_digits(stamp, 3, c->index);
  put_digits(stamp + 3, 5, number);
  put_digits(stamp + 8, 8, when - board->base);
  if (opt.window) {
    if (receivers) atomic_store_explicit(&waited_for[c->index * ring + (number & (ring - 1))], receivers, memory_order_relaxed);
    else atomic_fetch_sub(&board->on_their_way, 1);
  }
  if (c->json) publish(c, stamp);
  else frame(c, 1, stamp, STAMP, opt.size);
  c->owed--;
  atomic_store_explicit(&mine->expected, mine->expected + receivers, memory_order_relaxed);
  atomic_store_explicit(&mine->sent, mine->sent + 1, memory_order_relaxed);
  if (time >= board->measure) {
    mine->sent_in_time += time < board->stop;
    if (time - when > mine->lag) mine->lag = time - when;
  }
}

/* Frame and write what a sender owes, until nothing is owed or its socket takes no more. */
static void pump(Client *c, uint64_t time) {
  while (c->state == OPEN && c->owed && !c->armed) {
    while (c->owed && c->out_to - c->out_from < OUT_BYTES) post(c, time);
    flush(c);
  }
}

/* In: whole frames or events are taken from what one read brought. */

static void arrived(Client *c, const uint8_t *payload, size_t size, uint64_t at) {
  if (!c->receives || opt.hold) {
    mine->aside++;
    return;
  }
  if (c->json || c->sse) { /* what is told beside messages is as long as it likes; what went wrong is not */
    static const char message[] = "{\"type\":\"message\"", text[] = "\"text\":\"";
    const uint8_t *said = memmem(payload, size, text, sizeof text - 1), *end = payload + size;
    if (size < sizeof message || memcmp(payload, message, sizeof message - 1) || !said) {
      bool wrong = size > 9 && (!memcmp(payload + 9, "error", 5) || !memcmp(payload + 9, "gap", 3) || !memcmp(payload + 9, "bye", 3));
      if (wrong) mine->foreign++;
      else mine->aside++;
      return;
    }
    payload = said + sizeof text - 1;
    size = (size_t)(end - payload) - 2; /* but for the quote and the brace */
  }
  uint8_t bad = size != opt.size;
  if (bad || memcmp(payload + STAMP, fill + STAMP, size - STAMP)) {
    mine->foreign++;
    return;
  }
  uint32_t sender = (uint32_t)take_digits(payload, 3, &bad), number = (uint32_t)take_digits(payload + 3, 5, &bad);
  uint64_t when = take_digits(payload + 8, 8, &bad) + board->base;
  if (bad & 64 || sender >= opt.senders || sender % opt.rooms != c->room || !number) {
    mine->foreign++;
    return;
  }
  if (sender == c->index && !opt.echo) {
    mine->echoes++;
    return;
  }
  Track *track = &c->tracks[sender / opt.rooms];
  if (number > track->newest) {
    uint32_t skipped = number - track->newest - 1;
    mine->gaps += skipped;
    track->seen = skipped < 63 ? track->seen << (skipped + 1) | 1 : 1;
    track->newest = number;
  } else {
    uint32_t back = track->newest - number;
    if (back < 64 && track->seen >> back & 1) {
      mine->duplicates++;
      return;
    }
    mine->disorder++;
    if (back >= 64) return; /* too long ago to know whether it had come */
    mine->gaps--;
    track->seen |= 1ull << back;
  }
  atomic_store_explicit(&mine->delivered, mine->delivered + 1, memory_order_relaxed);
  if (opt.window && atomic_fetch_sub_explicit(&waited_for[sender * ring + (number & (ring - 1))], 1, memory_order_relaxed) == 1)
    atomic_fetch_sub_explicit(&board->on_their_way, 1, memory_order_relaxed);
  if (when < board->measure) return;
  uint64_t took = at > when ? at - when : 0;
  mine->histogram[bucket_of(took)]++;
  if (took > mine->longest) mine->longest = took;
}

static size_t parse(Client *c, const uint8_t *p, size_t n, uint64_t at) { /* gives how much it used up */
  size_t used = 0;
  while (c->state == OPEN && n - used >= 2) {
    const uint8_t *f = p + used;
    size_t head = 2, size = f[1] & 127;
    if (size >= 126) {
      head = size == 126 ? 4 : 10;
      if (n - used < head) break;
      size = 0;
      for (size_t i = 2; i < head; i++) size = size << 8 | f[i];
    }
    if (f[1] & 0x80 || size > READ_BYTES - 14) die("the server sent a frame that is masked or longer than %d bytes", READ_BYTES - 14);
    if (n - used < head + size) break;
    const uint8_t *payload = f + head;
    switch (f[0]) {
      case 0x81: arrived(c, payload, size, at); break;
      case 0x88:
        if (size >= 2 && !mine->close_code) mine->close_code = (uint32_t)(payload[0] << 8 | payload[1]);
        hang_up(c);
        break;
      case 0x89:
        mine->pings++;
        frame(c, 10, payload, size, size);
        flush(c);
        break;
      case 0x8a: break;
      default: mine->foreign++; /* binary, fragments, reserved: nobody asked for them */
    }
    used += head + size;
  }
  return c->state == OPEN ? used : n;
}

/* Takes the chunks' frames away, in place, wherever a read cut them; gives how many bytes of body are left. */
static size_t dechunk(Client *c, uint8_t *p, size_t n) {
  size_t to = 0;
  for (size_t from = 0; from < n && c->chunk != LAST;) {
    if (c->chunk == DATA) {
      size_t size = n - from < c->chunk_left ? n - from : c->chunk_left;
      memmove(p + to, p + from, size);
      from += size, to += size;
      if (!(c->chunk_left -= (uint32_t)size)) c->chunk = DATA_END;
      continue;
    }
    uint8_t byte = p[from++];
    if (byte == '\n') c->chunk = c->chunk == DATA_END ? LENGTH : c->chunk_left ? DATA : LAST;
    else if (byte == '\r' || c->chunk == EXTENSION) continue;
    else if (c->chunk == LENGTH && byte == ';') c->chunk = EXTENSION;
    else if (c->chunk == LENGTH && isxdigit(byte) && c->chunk_left < READ_BYTES)
      c->chunk_left = c->chunk_left << 4 | (uint32_t)(byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10);
    else die("the server sent a chunk that is none, or is longer than %d bytes", READ_BYTES);
  }
  return to;
}

static size_t take_event(Client *c, const uint8_t *p, size_t n, uint64_t at) { /* gives its length, 0: not all there */
  const uint8_t *name = p, *data = NULL, *line = p, *end;
  size_t name_size = 0, size = 0;
  for (; (end = memchr(line, '\n', n - (size_t)(line - p))) && end > line; line = end + 1) {
    if (!strncmp((const char *)line, "event: ", 7)) name = line + 7, name_size = (size_t)(end - name);
    if (!strncmp((const char *)line, "data: ", 6)) data = line + 6, size = (size_t)(end - data);
  }
  if (!end) return 0;
  static const char type[] = "{\"type\":\"";
  if (data && (size <= sizeof type + name_size || memcmp(data, type, sizeof type - 1) || memcmp(data + sizeof type - 1, name, name_size) ||
               data[sizeof type - 1 + name_size] != '"'))
    mine->foreign++; /* its name is not what it holds */
  else if (data) arrived(c, data, size, at);
  return (size_t)(end + 1 - p);
}

static size_t parse_events(Client *c, const uint8_t *p, size_t n, uint64_t at) { /* gives how much it used up */
  size_t used = 0;
  for (size_t size; (size = take_event(c, p + used, n - used, at)); used += size) continue;
  if (c->chunk == LAST) hang_up(c);
  return used;
}

static const char *protocol(const Client *c) { return c->sse ? NULL : c->json ? "chatd.v1" : opt.subprotocol; }

static size_t shake(Client *c, uint8_t *p, size_t n) { /* gives how long the answer was, 0: not all there */
  uint8_t *end = memmem(p, n, "\r\n\r\n", 4);
  if (!end && n < TAKEN_UP) return 0;
  int line = (int)strcspn((char *)p, "\r\n");
  if (!end || strncmp((char *)p, c->sse ? "HTTP/1.1 200" : "HTTP/1.1 101", 12)) die("the handshake was answered: %.*s", line, p);
  *end = 0;
  if (c->sse && (!strcasestr((char *)p, "\r\nContent-Type: text/event-stream") || !strcasestr((char *)p, "\r\nTransfer-Encoding: chunked")))
    die("who follows was answered without events in chunks");
  if (!c->sse && !strstr((char *)p, ACCEPT)) die("the handshake was answered without the right Sec-WebSocket-Accept");
  const char *wanted = protocol(c);
  if (wanted) {
    char *chosen = strcasestr((char *)p, "\r\nSec-WebSocket-Protocol:");
    if (!chosen || !strstr(chosen, wanted)) die("the server did not choose the subprotocol %s", wanted);
  }
  c->state = OPEN;
  atomic_fetch_add(&mine->connected, 1);
  return (size_t)(end + 4 - p);
}

static void hear(Client *c) {
  size_t n = c->rest_used;
  if (n) memcpy(incoming, c->rest, n);
  ssize_t got = read(c->fd, incoming + n, READ_BYTES - n);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return hang_up(c);
  uint64_t at = now(), before = mine->delivered;
  n += (size_t)got;
  incoming[n] = 0;
  size_t fresh = c->rest_used, used = 0;
  if (c->state == SHAKING) fresh = used = shake(c, incoming, n);
  if (c->stops && c->state == OPEN) return watch(c, false);
  if (c->sse && c->state == OPEN) n = fresh + dechunk(c, incoming + fresh, n - fresh), incoming[n] = 0;
  if (c->state == OPEN) used += (c->sse ? parse_events : parse)(c, incoming + used, n - used, at);
  if (c->state == CLOSED) return;
  if (board->measure && at >= board->measure && at < board->stop) mine->delivered_in_time += mine->delivered - before;
  c->rest_used = (uint32_t)(n - used);
  if (c->rest_used > c->rest_cap) c->rest = room_for(c->rest, c->rest_cap = c->rest_used * 2);
  if (c->rest_used) memcpy(c->rest, incoming + used, c->rest_used);
}

/* Connecting: `parallel` handshakes at a time, of all processes together. */

static void dial(Client *c) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (c->fd < 0) die("socket: %s", strerror(errno));
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (c->stops) { /* narrow, with segments as over Ethernet: else the kernels take megabytes before the server has to */
    setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &(int){4096}, sizeof(int));
    setsockopt(c->fd, IPPROTO_TCP, TCP_MAXSEG, &(int){1460}, sizeof(int));
  }
  if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect: %s", strerror(errno));
  c->state = DIALLING;
  watch(c, true);
}

static void ask(Client *c) { /* dialled: send the request */
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error) die("connect: %s", strerror(error));
  const char *path = c->sends && opt.send_path ? opt.send_path : opt.path, *hole = strstr(path, "{}"), *wanted = protocol(c);
  char target[1024], text[2048], room[16] = "";
  if (hole) snprintf(room, sizeof room, "%u", c->room);
  snprintf(target, sizeof target, "%.*s%s%s", hole ? (int)(hole - path) : (int)strlen(path), path, room, hole ? hole + 2 : "");
  int n = c->sse ? snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n\r\n", target, opt.port)
                 : snprintf(text, sizeof text,
                            "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n%s%s%s\r\n",
                            target, opt.port, KEY, wanted ? "Sec-WebSocket-Protocol: " : "",
                            wanted ? wanted : "", wanted ? "\r\n" : "");
  if (n >= (int)sizeof text || write(c->fd, text, (size_t)n) != n) die("the handshake could not be sent");
  c->state = SHAKING;
  watch(c, false);
}

static void look(Client *c, uint32_t events) {
  if (c->state == DIALLING) return ask(c);
  if (c->state == OPEN && c->stops) return hang_up(c);
  if (c->state != CLOSED && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) hear(c);
  if (c->state == OPEN && events & EPOLLOUT) {
    flush(c);
    if (c->owed) pump(c, now());
  }
}

static void poll_clients(int milliseconds) {
  struct epoll_event events[512];
  int n = epoll_wait(epoll, events, 512, milliseconds);
  for (int i = 0; i < n; i++) {
    uint64_t expirations;
    if (events[i].data.ptr) look(events[i].data.ptr, events[i].events);
    else if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timer: %s", strerror(errno));
  }
}

static void connect_all(void) {
  uint32_t at_once = share_of((uint32_t)opt.parallel, (uint32_t)opt.processes, self), dialled = 0, known = 0;
  uint64_t progress = now();
  while (mine->connected < count) {
    while (dialled < count && dialled - mine->connected < (at_once ? at_once : 1)) dial(&clients[dialled++]);
    poll_clients(100);
    if (mine->connected != known) known = (uint32_t)mine->connected, progress = now();
    if (now() - progress > 15 * SECOND) die("no handshake was answered for 15 s; %u of %u are connected", known, count);
  }
  mine->connected_at = now();
  mine->dial_cpu = cpu_time();
}

/* One process: its clients, its senders' schedule. */

static Client *touched[BURST];
static uint32_t touched_count, turn;
static uint64_t planned; /* messages of this process that were due up to now */

static void owe(Client *c) {
  c->owed++;
  if (!c->listed) c->listed = true, touched[touched_count++] = c;
}

static uint64_t next_due(void) {
  Client *c = &clients[planned % senders_here];
  return due(c, (uint32_t)(planned / senders_here) + 1);
}

static void plan_open(uint64_t time) {
  for (int i = 0; i < BURST && next_due() <= time && next_due() < board->stop; i++, planned++) {
    Client *c = &clients[planned % senders_here];
    if (c->state == OPEN) owe(c);
    else mine->unsent++;
  }
}

static void plan_closed(void) {
  for (uint32_t i = 0, refused = 0; i < BURST && refused < senders_here; i++) {
    Client *c = &clients[turn++ % senders_here];
    if (c->state != OPEN || c->armed) {
      refused++;
      continue;
    }
    if (atomic_fetch_add(&board->on_their_way, 1) >= opt.window) {
      atomic_fetch_sub(&board->on_their_way, 1);
      turn--;
      break;
    }
    refused = 0;
    owe(c);
  }
}

static void plan(uint64_t time) {
  if (opt.window) plan_closed();
  else plan_open(time);
  for (; touched_count; touched_count--) {
    Client *c = touched[touched_count - 1];
    c->listed = false;
    pump(c, time);
  }
}

static uint64_t owed_in_all(void) {
  uint64_t owed = 0;
  for (uint32_t i = 0; i < senders_here; i++) owed += clients[i].owed + (clients[i].state == OPEN && clients[i].out_to > 0);
  return owed;
}

static void wake_at(uint64_t time) {
  static uint64_t set;
  if (time == set && time > now()) return;
  set = time;
  struct itimerspec when = {.it_value = {(time_t)(time / SECOND), (long)(time % SECOND)}};
  timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void exchange(void) {
  uint64_t cpu = 0;
  while (!board->begin && !board->finish) poll_clients(1);
  bool measuring = false, measured = false;
  while (!board->finish) {
    uint64_t time = now();
    if (!measuring && time >= board->measure) measuring = true, cpu = cpu_time(), mine->busy_wall = time;
    if (measuring && !measured && time >= board->stop) {
      measured = true;
      mine->busy_cpu = cpu_time() - cpu;
      mine->busy_wall = time - mine->busy_wall;
    }
    bool sending = senders_here && time >= board->begin && time < board->stop;
    if (sending) plan(time);
    if (measured && !mine->told_all) {
      if (senders_here && !opt.window && next_due() < board->stop) plan(time); /* what was due just before the end */
      else if (!owed_in_all()) atomic_store(&mine->told_all, true);
    }
    uint64_t next = time < board->begin ? board->begin : !measuring ? board->measure : !measured ? board->stop : time + 5000000;
    if (sending && !opt.window && next_due() < next) next = next_due();
    if (opt.window && opt.processes > 1 && sending) next = time + 500000; /* the others open the window too */
    wake_at(next);
    poll_clients(-1);
  }
  if (!opt.hold) mine->unsent += owed_in_all();
}

_Noreturn static void live(uint32_t which) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  prctl(PR_SET_TIMERSLACK, 1000);
  self = which;
  mine = &board->shares[self];
  count = share_of(opt.clients, (uint32_t)opt.processes, self);
  senders_here = share_of(opt.senders, (uint32_t)opt.processes, self);
  random_state = now() ^ (uint64_t)getpid() << 32;
  incoming = room_for(NULL, READ_BYTES + 1);
  clients = room_for(NULL, count * sizeof *clients);
  memset(clients, 0, count * sizeof *clients);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  struct epoll_event event = {.events = EPOLLIN};
  if (epoll < 0 || timer < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event)) die("epoll: %s", strerror(errno));
  for (uint32_t i = 0; i < count; i++) {
    Client *c = &clients[i];
    c->index = i * (uint32_t)opt.processes + self;
    c->room = c->index % opt.rooms;
    c->sends = c->index < opt.senders;
    c->stops = c->index >= opt.clients - opt.stopped;
    c->json = c->index >= opt.clients - opt.json;
    c->sse = c->index >= opt.clients - opt.sse;
    c->receives = !c->stops && !(opt.apart && c->sends);
    uint32_t heard = share_of(opt.senders, opt.rooms, c->room);
    if (c->receives && heard) c->tracks = memset(room_for(NULL, heard * sizeof(Track)), 0, heard * sizeof(Track));
  }
  connect_all();
  exchange();
  atomic_store(&mine->over, true);
  _exit(0);
}

/* The parent: keeps time, says the phases, adds up. */

static pid_t children[PROCESSES_MOST];

static void give_up(const char *why) {
  for (int i = 0; i < opt.processes; i++) kill(children[i], SIGKILL);
  if (why) die("%s", why);
  _exit(1);
}

static void check_children(void) {
  int status;
  pid_t pid = waitpid(-1, &status, WNOHANG);
  if (pid > 0 && !board->finish) give_up(WIFEXITED(status) ? NULL : "a process of the generator was killed");
}

static void sleep_until(uint64_t time) {
  for (uint64_t t; (t = now()) < time; check_children()) {
    uint64_t left = time - t > SECOND / 20 ? SECOND / 20 : time - t;
    nanosleep(&(struct timespec){0, (long)left}, NULL);
  }
}

static void say(const char *phase) {
  if (opt.phases) fprintf(stderr, "phase: %s\n", phase);
}

#define TOTAL(field) ({ uint64_t sum = 0; for (int i_ = 0; i_ < opt.processes; i_++) sum += board->shares[i_].field; sum; })

static bool everywhere(size_t offset) { /* whether a flag of the shares is up in all of them */
  for (int i = 0; i < opt.processes; i++)
    if (!atomic_load((_Atomic bool *)((char *)&board->shares[i] + offset))) return false;
  return true;
}

static void wait_for_the_rest(void) {
  uint64_t progress = now(), known = 0, end = board->stop + (uint64_t)(opt.drain * 1e9);
  for (;;) {
    uint64_t time = now(), arrived_by_now = TOTAL(delivered);
    if (arrived_by_now != known) known = arrived_by_now, progress = time;
    if (everywhere(offsetof(Share, told_all)) && known >= TOTAL(expected)) return;
    if (time - progress > (uint64_t)(opt.patience * 1e9) || time > end) return;
    sleep_until(time + 2000000);
  }
}

static void print_busy(size_t cpu, uint64_t wall) {
  for (int i = 0; i < opt.processes; i++) {
    Share *share = &board->shares[i];
    uint64_t over = wall ? wall : share->busy_wall;
    printf("%s%.3f", i ? ", " : "", over ? (double)*(uint64_t *)((char *)share + cpu) / (double)over : 0);
  }
}

static void report(void) {
  uint64_t last = 0, longest = 0, lag = 0, histogram[BUCKETS] = {0};
  uint32_t close_code = 0;
  for (int i = 0; i < opt.processes; i++) {
    Share *share = &board->shares[i];
    if (share->connected_at > last) last = share->connected_at;
    if (share->longest > longest) longest = share->longest;
    if (share->lag > lag) lag = share->lag;
    if (!close_code) close_code = share->close_code;
    for (size_t j = 0; j < BUCKETS; j++) histogram[j] += share->histogram[j];
  }
  double window = (double)(board->stop - board->measure) / 1e9, dialling = (double)(last - began) / 1e9;
  printf("{\"clients\": %u, \"senders\": %u, \"rooms\": %u, \"size\": %u, \"connect_s\": %.6f, \"connects_per_s\": %.1f, \"connect_busy\": [",
         opt.clients, opt.senders, opt.rooms, opt.size, dialling, opt.clients / dialling);
  print_busy(offsetof(Share, dial_cpu), last - began);
  printf("], \"closed\": %lu, \"close_code\": %u, \"pings\": %lu, \"aside\": %lu", TOTAL(closed), close_code, TOTAL(pings), TOTAL(aside));
  if (!opt.hold) {
    printf(", \"seconds\": %.3f, \"sent\": %lu, \"unsent\": %lu, \"expected\": %lu, \"delivered\": %lu, \"missing\": %lu, \"gaps\": %lu, "
           "\"duplicates\": %lu, \"disorder\": %lu, \"echoes\": %lu, \"foreign\": %lu",
           window, TOTAL(sent), TOTAL(unsent), TOTAL(expected), TOTAL(delivered), TOTAL(expected) - TOTAL(delivered), TOTAL(gaps),
           TOTAL(duplicates), TOTAL(disorder), TOTAL(echoes), TOTAL(foreign));
    printf(", \"delivered_in_time\": %lu, \"messages_per_s\": %.1f, \"deliveries_per_s\": %.1f, \"latency_ms\": ", TOTAL(delivered_in_time),
           (double)TOTAL(sent_in_time) / window, (double)TOTAL(delivered_in_time) / window);
    print_latency(histogram, longest);
    printf(", \"send_lag_ms\": %.6f, \"busy\": [", (double)lag / 1e6);
    print_busy(offsetof(Share, busy_cpu), 0);
    printf("]");
  }
  printf("}\n");
}

static void run(void) {
  size_t size = sizeof(Board) + (size_t)opt.processes * sizeof(Share);
  for (ring = 1; ring < opt.window; ring *= 2) continue;
  size_t waited = opt.window ? (size_t)opt.senders * ring * sizeof *waited_for : 1;
  board = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  waited_for = mmap(NULL, waited, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (board == MAP_FAILED || (void *)waited_for == MAP_FAILED) die("mmap: %s", strerror(errno));
  board->base = began = now();
  for (int i = 0; i < opt.processes; i++) {
    children[i] = fork();
    if (children[i] < 0) give_up("fork failed");
    if (!children[i]) live((uint32_t)i);
  }
  while (TOTAL(connected) < opt.clients) sleep_until(now() + 1000000);
  sleep_until(now() + (uint64_t)(opt.settle * 1e9));
  say("connected");
  if (opt.hold) {
    char ignored[512];
    while (read(STDIN_FILENO, ignored, sizeof ignored) > 0) continue;
  } else {
    uint64_t begin = now() + SECOND / 100;
    board->measure = begin + (uint64_t)(opt.warmup * 1e9);
    board->stop = board->measure + (uint64_t)(opt.seconds * 1e9);
    board->begin = begin; /* last: it starts the others */
    sleep_until(board->measure);
    say("measuring");
    sleep_until(board->stop);
    say("measured");
    wait_for_the_rest();
  }
  board->finish = true;
  for (int status, i = 0; i < opt.processes; i++)
    if (waitpid(children[i], &status, 0) > 0 && status) give_up(WIFEXITED(status) ? NULL : "a process of the generator was killed");
  report();
}

/* Options */

static void percentiles_of_stdin(void) {
  static uint64_t histogram[BUCKETS];
  uint64_t value, longest = 0;
  while (scanf("%lu", &value) == 1) {
    histogram[bucket_of(value)]++;
    if (value > longest) longest = value;
  }
  print_latency(histogram, longest);
  printf("\n");
}

static const char HELP[] =
    "load --port PORT [options]: chat clients on loopback; prints what they saw as JSON\n"
    "  --clients N       connections (2)\n"
    "  --senders S       the first S of them send (1)\n"
    "  --apart           senders only send, the others only receive\n"
    "  --stopped K       the last K clients read nothing after the answer to their handshake (0)\n"
    "  --json K          the last K clients speak chatd.v1 (0)\n"
    "  --sse K           the last K clients are no WebSockets, they follow by server-sent events (0)\n"
    "  --echo            the server gives a sender its own messages too\n"
    "  --rooms R         client i is in room i mod R (1)\n"
    "  --path PATH       the request target; {} in it becomes the room's number (/)\n"
    "  --send-path PATH  that of senders, where it differs\n"
    "  --subprotocol P   offered, and the server must choose it\n"
    "  --size BYTES      of a message, 16 to 16384 (64)\n"
    "  --window W        closed loop: at most W messages that not all receivers have\n"
    "  --rate R          open loop: messages a second, of all senders together\n"
    "  --warmup S        seconds of load that are checked, but not measured (0.5)\n"
    "  --seconds S       seconds measured (3)\n"
    "  --settle S        seconds between the last handshake and the first message (0.2)\n"
    "  --patience S      at the end: give up when nothing came for so long (2)\n"
    "  --drain S         at the end: give up after this in any case (20)\n"
    "  --parallel C      handshakes at once (128)\n"
    "  --processes P     processes that share the clients (1)\n"
    "  --hold            only connect, and stay until stdin ends\n"
    "  --phases          say on stderr when all are connected, when measuring begins and ends\n"
    "  --percentiles     read nanoseconds from stdin, print their percentiles, connect nothing\n";

static double number(const char *name, const char *text, double least, double most) {
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= least && value <= most)) die("--%s must be from %g to %g, not %s", name, least, most, text);
  return value;
}

int main(int argc, char **argv) {
  static const struct option known[] = {
      {"port", 1, 0, 'p'}, {"clients", 1, 0, 'n'}, {"senders", 1, 0, 's'}, {"apart", 0, 0, 'a'}, {"stopped", 1, 0, 'k'}, {"json", 1, 0, 'j'}, {"sse", 1, 0, 'E'}, {"echo", 0, 0, 'e'},
      {"rooms", 1, 0, 'r'}, {"path", 1, 0, 'u'}, {"send-path", 1, 0, 'U'}, {"subprotocol", 1, 0, 'P'}, {"size", 1, 0, 'z'},
      {"window", 1, 0, 'w'}, {"rate", 1, 0, 'R'}, {"warmup", 1, 0, 'W'}, {"seconds", 1, 0, 'd'}, {"settle", 1, 0, 'S'},
      {"patience", 1, 0, 't'}, {"drain", 1, 0, 'D'}, {"parallel", 1, 0, 'c'}, {"processes", 1, 0, 'm'}, {"hold", 0, 0, 'H'},
      {"phases", 0, 0, 'f'}, {"percentiles", 0, 0, 'q'}, {"help", 0, 0, 'h'}, {0}};
  memset(value_of, 64, sizeof value_of);
  for (int i = 0; i < 64; i++) value_of[(uint8_t)DIGITS[i]] = (uint8_t)i;
  for (int i = 0; i < SIZE_MOST; i++) fill[i] = (uint8_t)('a' + i % 26);
  for (int got, which = 0; (got = getopt_long(argc, argv, "", known, &which)) != -1;) {
    const char *name = known[which].name;
    switch (got) {
      case 'p': opt.port = (int)number(name, optarg, 1, 65535); break;
      case 'n': opt.clients = (uint32_t)number(name, optarg, 1, 1e6); break;
      case 's': opt.senders = (uint32_t)number(name, optarg, 0, SENDERS_MOST); break;
      case 'a': opt.apart = true; break;
      case 'k': opt.stopped = (uint32_t)number(name, optarg, 0, 1e6); break;
      case 'j': opt.json = (uint32_t)number(name, optarg, 0, 1e6); break;
      case 'E': opt.sse = (uint32_t)number(name, optarg, 0, 1e6); break;
      case 'e': opt.echo = true; break;
      case 'r': opt.rooms = (uint32_t)number(name, optarg, 1, 1e6); break;
      case 'u': opt.path = optarg; break;
      case 'U': opt.send_path = optarg; break;
      case 'P': opt.subprotocol = optarg; break;
      case 'z': opt.size = (uint32_t)number(name, optarg, STAMP, SIZE_MOST); break;
      case 'w': opt.window = (uint32_t)number(name, optarg, 1, 1 << 20); break;
      case 'R': opt.rate = number(name, optarg, 0.001, 1e8); break;
      case 'W': opt.warmup = number(name, optarg, 0, 3600); break;
      case 'd': opt.seconds = number(name, optarg, 0.01, 3600); break;
      case 'S': opt.settle = number(name, optarg, 0, 3600); break;
      case 't': opt.patience = number(name, optarg, 0.01, 3600); break;
      case 'D': opt.drain = number(name, optarg, 0, 3600); break;
      case 'c': opt.parallel = (int)number(name, optarg, 1, 10000); break;
      case 'm': opt.processes = (int)number(name, optarg, 1, PROCESSES_MOST); break;
      case 'H': opt.hold = true; break;
      case 'f': opt.phases = true; break;
      case 'q': percentiles_of_stdin(); return 0;
      case 'h': fputs(HELP, stdout); return 0;
      default: return 1;
    }
  }
  if (optind < argc) die("what is %s? See load --help", argv[optind]);
  if (!opt.port) die("--port is needed");
  if (!opt.hold && !opt.window == !opt.rate) die("either --window or --rate is needed, or --hold");
  if (opt.senders + opt.stopped > opt.clients) die("more senders than clients, those that stop reading apart");
  if (opt.senders + opt.sse > opt.clients) die("more senders than clients, those that only follow apart");
  if (opt.json > opt.clients) die("--json: there are no more than %u clients", opt.clients);
  if (opt.stopped && opt.rooms > 1) die("--stopped is for one room");
  if ((uint32_t)opt.processes > opt.clients) opt.processes = (int)opt.clients;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  if (opt.clients / (uint32_t)opt.processes + 16 > files.rlim_cur) die("only %lu open files are allowed: more --processes", files.rlim_cur);
  signal(SIGPIPE, SIG_IGN);
  run();
  return 0;
}
