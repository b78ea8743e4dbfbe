/* Reads many WebSockets at once, counts what comes, and answers as a device does.
 *
 *     receive sealwire|plain|socketio ACK_BYTES STAMP_AT
 *
 * The sockets are inherited: the first line of stdin is how many there are, then one line for each, `FD` or `FD HEX`,
 * where HEX are bytes that were read from it already. They have shaken hands (and, for a relay, logged in) before.
 * Then commands, one a line, each answered by one line of JSON:
 *
 *     zero    counts begin again
 *     look    what was counted since
 *
 * It ends when stdin does.
 *
 *   sealwire  a binary frame that is a DELIVER counts its records (last - prev). Credit is given back by an ACK with the
 *             position, when ACK_BYTES are due, or five seconds after the first of them.
 *   plain     a binary frame is one record.
 *   socketio  a text frame that begins with 42 is one record, and so is a binary frame; a text frame 2 is answered by 3.
 *
 * STAMP_AT: where in a frame, counted from its end, eight big-endian bytes say when it was sent (nanoseconds of
 * CLOCK_MONOTONIC); 0: nowhere. Frames of more than KEPT bytes are counted, but not looked at for that.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define KEPT 1024           /* bytes of a frame that is cut by a read: the head of a DELIVER, or a whole small frame */
#define READ_BYTES 262144
#define EVENTS 1024
#define TICK_MS 50          /* how late an ACK by time may be */
#define ACK_NS 5000000000ull  /* ACK_DELAY_SECONDS */
#define LINE_BYTES 4194304  /* a line of stdin: one frame in hex */
#define DELIVER 0xc4
#define DELIVER_NAMES 25    /* type, vault, stream: what an ACK repeats but its type */

enum mode { SEALWIRE, PLAIN, SOCKETIO };

struct connection {
    int fd;
    int head;                /* bytes of the frame's head that have come, in `header` */
    int kept;                /* bytes of its payload in `keep` */
    uint64_t size, missing;  /* of its payload; what has not come yet */
    uint64_t frames, records, bytes;
    uint64_t due, since;     /* credit to give back, and from when on */
    int names;               /* bytes of `name` */
    unsigned char header[14], name[48], keep[KEPT];
};

static enum mode mode;
static uint64_t ack_bytes, zeroed, last_at, reads, acks, closed, stamp_at;
static struct connection *connections;
static int count, epoll;
static float *stamps;
static size_t stamped, stamps_room;
static struct rusage used;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void fail(const char *why) {
    fprintf(stderr, "receive: %s\n", why);
    exit(2);
}

/* A masked frame; the mask is zero, which changes nothing. */
static void answer(struct connection *c, int opcode, const unsigned char *payload, size_t size) {
    unsigned char frame[6 + 125] = {0x80 | opcode, 0x80 | size};
    if (size > 125) fail("an answer is too long");
    memcpy(frame + 6, payload, size);
    if (send(c->fd, frame, 6 + size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)(6 + size) && errno != EPIPE &&
        errno != ECONNRESET)
        fail("an answer was not taken: the server does not read");
}

static int varint(const unsigned char *p, const unsigned char *end, uint64_t *value) {
    int at = 0;
    *value = 0;
    do {
        if (p + at >= end || at > 8) fail("a varint is cut off");
        *value |= (uint64_t)(p[at] & 0x7f) << 7 * at;
    } while (p[at++] & 0x80);
    return at;
}

static void give_credit(struct connection *c) {
    unsigned char ack[7 + sizeof c->name] = {0x86, c->due >> 24, c->due >> 16, c->due >> 8, c->due, 0, 1};
    memcpy(ack + 7, c->name, c->names);
    answer(c, 2, ack, 7 + c->names);
    c->due = 0;
    acks++;
}

/* `p` has at least the head of a DELIVER; its term, and its last seq, are kept for the ACK. */
static uint64_t deliver(struct connection *c, const unsigned char *p, const unsigned char *end, uint64_t at) {
    const unsigned char *q = p + DELIVER_NAMES;
    uint64_t ignored, prev, last;
    q += varint(q, end, &ignored) + 8;
    int names = q - p - 1;
    for (int field = 0; field < 4; field++) q += varint(q, end, &ignored);
    q += varint(q, end, &prev);
    int size = varint(q, end, &last);
    memcpy(c->name, p + 1, names);
    memcpy(c->name + names, q, size);
    c->names = names + size;
    if (!c->due) c->since = at;
    c->due += c->size;
    if (c->due >= ack_bytes) give_credit(c);
    return last - prev;
}

static void note(float milliseconds) {
    if (stamped == stamps_room) {
        stamps_room = stamps_room ? 2 * stamps_room : 1 << 16;
        if (!(stamps = realloc(stamps, stamps_room * sizeof *stamps))) fail("no memory for stamps");
    }
    stamps[stamped++] = milliseconds;
}

/* A whole frame: of its payload the first `got` bytes are at `p`. */
static void frame(struct connection *c, const unsigned char *p, uint64_t got, uint64_t at) {
    int opcode = c->header[0] & 15;
    uint64_t records = 0;
    if (opcode == 9) answer(c, 10, p, got);
    else if (opcode == 8) closed++;
    else if (mode == SOCKETIO && opcode == 1) {
        if (got == 1 && p[0] == '2') answer(c, 1, (const unsigned char *)"3", 1);
        records = got > 1 && p[0] == '4' && p[1] == '2';
    } else if (opcode == 2) records = mode != SEALWIRE ? 1 : got && p[0] == DELIVER ? deliver(c, p, p + got, at) : 0;
    if (!records) return;
    c->frames++;
    c->records += records;
    c->bytes += c->size;
    last_at = at;
    if (stamp_at && got == c->size && c->size >= stamp_at) {
        uint64_t sent = 0;
        for (int i = 0; i < 8; i++) sent = sent << 8 | p[c->size - stamp_at + i];
        note((at - sent) / 1e6f);
    }
}

static void take(struct connection *c, const unsigned char *p, const unsigned char *end, uint64_t at) {
    while (p < end) {
        if (c->missing) {
            uint64_t here = (uint64_t)(end - p) < c->missing ? (uint64_t)(end - p) : c->missing;
            uint64_t room = KEPT - c->kept;
            if (room > here) room = here;
            if (!c->kept && here == c->size) {
                c->missing = c->head = 0;
                frame(c, p, here, at);
                p += here;
                continue;
            }
            memcpy(c->keep + c->kept, p, room);
            c->kept += room;
            p += here;
            if ((c->missing -= here)) return;
            c->head = 0;
            frame(c, c->keep, c->kept, at);
            continue;
        }
        c->header[c->head++] = *p++;
        if (c->head < 2) continue;
        int size = c->header[1] & 0x7f, head = 2 + (size == 126 ? 2 : size == 127 ? 8 : 0);
        if (c->head < head) continue;
        c->size = size < 126 ? size : 0;
        for (int i = 2; i < head; i++) c->size = c->size << 8 | c->header[i];
        c->missing = c->size;
        c->kept = 0;
        if (!c->size) {
            c->head = 0;
            frame(c, c->keep, 0, at);
        }
    }
}

static void zero(void) {
    zeroed = last_at = now();
    reads = acks = stamped = 0;
    for (int i = 0; i < count; i++) connections[i].frames = connections[i].records = connections[i].bytes = 0;
    getrusage(RUSAGE_SELF, &used);
    printf("{}\n");
}

static int compare(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double seconds(struct timeval a, struct timeval b) {
    return (a.tv_sec - b.tv_sec) + (a.tv_usec - b.tv_usec) * 1e-6;
}

static float share(double part) { return stamped ? stamps[(size_t)(part * (stamped - 1))] : 0; }

static void look(void) {
    uint64_t frames = 0, records = 0, bytes = 0, least = UINT64_MAX, most = 0;
    struct rusage u;
    for (int i = 0; i < count; i++) {
        struct connection *c = &connections[i];
        frames += c->frames;
        records += c->records;
        bytes += c->bytes;
        if (c->records < least) least = c->records;
        if (c->records > most) most = c->records;
    }
    double took = (now() - zeroed) * 1e-9;
    getrusage(RUSAGE_SELF, &u);
    double cpu = seconds(u.ru_utime, used.ru_utime) + seconds(u.ru_stime, used.ru_stime);
    qsort(stamps, stamped, sizeof *stamps, compare);
    printf("{\"connections\": %d, \"closed\": %lu, \"frames\": %lu, \"records\": %lu, \"bytes\": %lu, \"least\": %lu, "
           "\"most\": %lu, \"seconds\": %.6f, \"last_seconds\": %.6f, \"reads\": %lu, \"acks\": %lu, \"cpu_share\": %.4f, "
           "\"stamped\": %zu, \"p50_ms\": %.4f, \"p90_ms\": %.4f, \"p99_ms\": %.4f, \"p999_ms\": %.4f, \"max_ms\": %.4f}\n",
           count, closed, frames, records, bytes, least, most, took, (last_at - zeroed) * 1e-9, reads, acks,
           took ? cpu / took : 0, stamped, share(0.5), share(0.9), share(0.99), share(0.999), share(1));
}

static int hex(int digit) { return digit <= '9' ? digit - '0' : digit - 'a' + 10; }

static void inherit(char *line) {
    if (!fgets(line, LINE_BYTES, stdin)) fail("nothing on stdin");
    count = atoi(line);
    connections = calloc(count, sizeof *connections);
    for (int i = 0; i < count; i++) {
        struct connection *c = &connections[i];
        if (!fgets(line, LINE_BYTES, stdin)) fail("fewer sockets than promised");
        char *rest;
        c->fd = strtol(line, &rest, 10);
        fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event)) fail("a socket cannot be watched");
        unsigned char *bytes = (unsigned char *)line;
        size_t size = 0;
        if (*rest == ' ')
            for (rest++; *rest && *rest != '\n'; rest += 2) bytes[size++] = hex(rest[0]) << 4 | hex(rest[1]);
        take(c, bytes, bytes + size, now());
    }
}

static void command(const char *line) {
    if (!strcmp(line, "zero\n")) zero();
    else if (!strcmp(line, "look\n")) look();
    else fail("an unknown command");
    fflush(stdout);
}

int main(int argc, char **argv) {
    static unsigned char buffer[READ_BYTES];
    static char line[LINE_BYTES];
    struct epoll_event events[EVENTS];
    if (argc != 4) fail("usage: receive sealwire|plain|socketio ACK_BYTES STAMP_AT");
    mode = !strcmp(argv[1], "sealwire") ? SEALWIRE : !strcmp(argv[1], "plain") ? PLAIN : SOCKETIO;
    ack_bytes = strtoull(argv[2], 0, 10);
    stamp_at = strtoull(argv[3], 0, 10);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdin, 0, _IONBF, 0);  /* what is buffered would not wake epoll */
    epoll = epoll_create1(0);
    inherit(line);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
    zero();
    fflush(stdout);
    for (uint64_t ticked = now();;) {
        int ready = epoll_wait(epoll, events, EVENTS, TICK_MS);
        uint64_t at = now();
        for (int i = 0; i < ready; i++) {
            if (events[i].data.u32 == UINT32_MAX) {
                if (!fgets(line, LINE_BYTES, stdin)) return 0;
                command(line);
                continue;
            }
            struct connection *c = &connections[events[i].data.u32];
            ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
            if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
            if (got <= 0) {
                closed++;
                epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, 0);
                continue;
            }
            reads++;
            take(c, buffer, buffer + got, stamp_at ? now() : at);
        }
        if (mode == SEALWIRE && at - ticked >= TICK_MS * 1000000ull) {
            ticked = at;
            for (int i = 0; i < count; i++)
                if (connections[i].due && at - connections[i].since >= ACK_NS) give_credit(&connections[i]);
        }
    }
}
