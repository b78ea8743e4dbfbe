/* Writes to and reads from a server over connections that were opened, and logged in, by whoever starts this.
 *
 * The plan comes in as lines: names and numbers, bytes in hexadecimal. Connections are inherited descriptors.
 *
 *   protocol sealwire|redis|nats
 *   seconds WARM MEASURE        then what is under way is answered, and figures are printed
 *   rate WRITES_PER_S           in all, its time being when each was due; 0: as fast as answers come
 *   until RECORDS               end when so many are read, in place of by the clock
 *   writes WRITES               end when so many are answered, in place of by the clock
 *   credit BYTES SECONDS        Sealwire: give credit back after so many, or so long after the first of them
 *   record BYTES STAMP PAYLOAD  of a record, of its end from its time's place (0: it has none), of a peer's payload
 *   connection FD               what follows is about it
 *   lane WINDOW RECORDS NUMBER KEY BEFORE AFTER
 *   reader EVERY AGAIN PLACE    AGAIN `-`: it need not ask
 *   had BYTES                   read from it already
 *   say BYTES                   at once, when all is ready
 *
 * It prints one JSON object. One thread; what one turn of the loop has to say to a connection goes out in one send.
 */
#define _GNU_SOURCE
#include "traffic.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 4096, EVENTS_MAX = 256, READ_BYTES = 262144, SAMPLES_MAX = 4000000 };
static const double DRAIN_S_MAX = 60;
static const double ACK_LATE_S = .05; /* how late an ACK by time may be */

Plan plan;
static Connection *connections[CONNECTIONS_MAX];
static int connection_count, poller, writing, measuring;
static Parse parse;
double now;
static double began, measured_from;
static uint64_t answered_records, delivered_records, delivered_bytes, under_way, written;

/* Waits in milliseconds, kept while measuring. */
typedef struct {
    float *ms;
    size_t count;
} Samples;
static Samples answer_waits, delivery_waits;

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static double clock_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double cpu_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void make_room(Bytes *bytes, size_t more) {
    if (bytes->size + more <= bytes->room) return;
    bytes->room = (bytes->size + more) * 2;
    bytes->data = realloc(bytes->data, bytes->room);
    if (!bytes->data) fail("out of memory");
}

void append(Bytes *to, const void *data, size_t size) {
    make_room(to, size);
    memcpy(to->data + to->size, data, size);
    to->size += size;
}

static void keep(Samples *samples, double seconds) {
    if (measuring && samples->count < SAMPLES_MAX) samples->ms[samples->count++] = (float)(seconds * 1e3);
}

/* --- writing and reading */

/* When the next write is due: at a rate of one's own, not when the server has time for it. */
static double due(void) { return began + (double)(written + 1) / plan.rate; }

static int may_write(void) { return writing && !(plan.writes && written == plan.writes); }

static void write_one(Connection *at, Lane *lane) {
    unsigned char number[10];
    double stamp = plan.rate ? due() : now;
    if (!may_write()) return;
    if (plan.stamp_at) memcpy(lane->after.data + lane->after.size - plan.stamp_at, &stamp, sizeof stamp);
    if (parse == parse_sealwire) {
        append_frame(&at->out, lane->before.data, lane->before.size, number, varint(number, lane->number),
                     lane->after.data, lane->after.size);
        lane->number++;
    } else {
        append(&at->out, lane->before.data, lane->before.size);
        append(&at->out, lane->after.data, lane->after.size);
    }
    lane->sent_at[lane->sent++ % UNANSWERED_MAX] = stamp;
    if (++lane->under_way > UNANSWERED_MAX) fail("the server has left %d writes unanswered", UNANSWERED_MAX);
    under_way++;
    written++;
}

void answered(Connection *at, Lane *lane) {
    keep(&answer_waits, now - lane->sent_at[lane->answered++ % UNANSWERED_MAX]);
    lane->under_way--;
    under_way--;
    answered_records += lane->records;
    if (!plan.rate) write_one(at, lane);
}

void delivered(Connection *at, const unsigned char *end, uint64_t records) {
    at->delivered += records;
    delivered_records += records;
    if (!plan.stamp_at) return;
    for (uint64_t record = 0; record < records; record++) {
        double sent;
        memcpy(&sent, end - plan.record_bytes * record - plan.stamp_at, sizeof sent);
        keep(&delivery_waits, now - sent);
    }
}

static void flush(Connection *at) {
    size_t sent = 0;
    while (sent < at->out.size) {
        ssize_t done = send(at->fd, at->out.data + sent, at->out.size - sent, MSG_NOSIGNAL);
        if (done < 0 && errno != EAGAIN) fail("a connection was lost: %s", strerror(errno));
        if (done < 0) break;
        sent += (size_t)done;
    }
    memmove(at->out.data, at->out.data + sent, at->out.size - sent);
    at->out.size -= sent;
    if ((at->out.size > 0) == at->waits_to_write) return;
    at->waits_to_write = at->out.size > 0;
    struct epoll_event wanted = {.events = EPOLLIN | (at->waits_to_write ? EPOLLOUT : 0), .data.ptr = at};
    epoll_ctl(poller, EPOLL_CTL_MOD, at->fd, &wanted);
}

static void take_messages(Connection *at) {
    size_t taken = parse(at, at->in.data, at->in.size);
    memmove(at->in.data, at->in.data + taken, at->in.size - taken);
    at->in.size -= taken;
}

static void receive(Connection *at) {
    make_room(&at->in, READ_BYTES);
    ssize_t got = recv(at->fd, at->in.data + at->in.size, READ_BYTES, 0);
    now = clock_s();
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) fail("the server closed a connection");
    delivered_bytes += at->reads ? (uint64_t)got : 0;
    at->in.size += (size_t)got;
    take_messages(at);
}

/* --- the plan */

static int nibble(int letter) { return letter <= '9' ? letter - '0' : (letter | 32) - 'a' + 10; }

static void read_hex(Bytes *to, const char *text) {
    if (!text) fail("the plan lacks bytes");
    for (; text[0] && text[1] && text[0] != '-'; text += 2) {
        unsigned char byte = (unsigned char)(nibble(text[0]) << 4 | nibble(text[1]));
        append(to, &byte, 1);
    }
}

static double number(void) {
    const char *word = strtok(NULL, " \n");
    if (!word) fail("the plan lacks a number");
    return strtod(word, NULL);
}

static void add_lane(Connection *at) {
    Lane *lane = calloc(1, sizeof *lane);
    Bytes key = {0};
    lane->window = (uint32_t)number();
    lane->records = (uint32_t)number();
    lane->number = (uint64_t)number();
    read_hex(&key, strtok(NULL, " \n"));
    memcpy(lane->key, key.data ? key.data : lane->key, key.size < 16 ? key.size : 16);
    read_hex(&lane->before, strtok(NULL, " \n"));
    read_hex(&lane->after, strtok(NULL, " \n"));
    if (at->lane_count == LANES_MAX || lane->window > UNANSWERED_MAX) fail("the plan has too many writes");
    at->lanes[at->lane_count++] = lane;
}

static void add_reader(Connection *at) {
    Bytes place = {0};
    at->reads = 1;
    at->again_every = (uint64_t)number();
    read_hex(&at->again, strtok(NULL, " \n"));
    read_hex(&place, strtok(NULL, " \n"));
    at->place_size = place.size < sizeof at->place ? place.size : 0;
    memcpy(at->place, place.data ? place.data : (void *)"", at->place_size);
}

static void read_line(char *line) {
    const char *word = strtok(line, " \n");
    Connection *at = connection_count ? connections[connection_count - 1] : NULL;
    if (!strcmp(word, "protocol")) {
        word = strtok(NULL, " \n");
        parse = !strcmp(word, "sealwire") ? parse_sealwire : !strcmp(word, "redis") ? parse_redis : parse_nats;
    } else if (!strcmp(word, "seconds")) {
        plan.warm_s = number();
        plan.measure_s = number();
    } else if (!strcmp(word, "rate")) {
        plan.rate = number();
    } else if (!strcmp(word, "until")) {
        plan.until = (uint64_t)number();
    } else if (!strcmp(word, "writes")) {
        plan.writes = (uint64_t)number();
    } else if (!strcmp(word, "credit")) {
        plan.credit_bytes = (uint32_t)number();
        plan.credit_s = number();
    } else if (!strcmp(word, "record")) {
        plan.record_bytes = (uint32_t)number();
        plan.stamp_at = (uint32_t)number();
        plan.payload_bytes = (uint32_t)number();
    } else if (!strcmp(word, "connection")) {
        if (connection_count == CONNECTIONS_MAX) fail("the plan has too many connections");
        at = connections[connection_count++] = calloc(1, sizeof *at);
        at->fd = (int)number();
    } else if (!strcmp(word, "lane")) {
        add_lane(at);
    } else if (!strcmp(word, "reader")) {
        add_reader(at);
    } else if (!strcmp(word, "had")) {
        read_hex(&at->in, strtok(NULL, " \n"));
    } else if (!strcmp(word, "say")) {
        read_hex(&at->out, strtok(NULL, " \n"));
    } else {
        fail("the plan has an unknown line: %s", word);
    }
}

static void read_plan(void) {
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) read_line(line);
    free(line);
    poller = epoll_create1(0);
    for (int place = 0; place < connection_count; place++) {
        struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = connections[place]};
        fcntl(connections[place]->fd, F_SETFL, O_NONBLOCK);
        if (epoll_ctl(poller, EPOLL_CTL_ADD, connections[place]->fd, &wanted)) fail("epoll: %s", strerror(errno));
    }
    answer_waits.ms = malloc(SAMPLES_MAX * sizeof(float));
    delivery_waits.ms = malloc(SAMPLES_MAX * sizeof(float));
}

/* --- the loop */

static void begin(void) {
    now = began = clock_s();
    writing = 1;
    for (int each = 0; each < connection_count; each++) {
        Connection *at = connections[each];
        for (int lane = 0; lane < at->lane_count && !plan.rate; lane++)
            for (uint32_t place = 0; place < at->lanes[lane]->window; place++) write_one(at, at->lanes[lane]);
        if (at->in.size) take_messages(at);
        flush(at);
    }
}

/* A clock that ticks at the rate of writing; the descriptor's `data.ptr` is null. */
static int start_ticking(void) {
    int ticker = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    long period = (long)(1e9 / plan.rate);
    struct itimerspec ticks = {{period / 1000000000, period % 1000000000}, {period / 1000000000, period % 1000000000}};
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = NULL};
    timerfd_settime(ticker, 0, &ticks, NULL);
    epoll_ctl(poller, EPOLL_CTL_ADD, ticker, &wanted);
    return ticker;
}

/* Write what is due, each by the next writer that may; what none may waits, and its time runs. */
static void write_due(void) {
    static int turn;
    for (int tried = 0; may_write() && now >= due() && tried < connection_count; tried++) {
        Connection *at = connections[turn++ % connection_count];
        if (!at->lane_count || at->lanes[0]->under_way == at->lanes[0]->window) continue;
        write_one(at, at->lanes[0]);
        flush(at);
        tried = -1;
    }
}

/* Of who is sent little, as a device does. */
static void give_late_credit(void) {
    static double looked;
    if (now - looked < ACK_LATE_S) return;
    looked = now;
    for (int place = 0; place < connection_count; place++) {
        Connection *at = connections[place];
        if (!at->bytes_due || now - at->due_since < plan.credit_s) continue;
        give_credit(at);
        flush(at);
    }
}

static void turn_loop(int ticker) {
    struct epoll_event events[EVENTS_MAX];
    int found = epoll_wait(poller, events, EVENTS_MAX, 20);
    for (int place = 0; place < found; place++) {
        Connection *at = events[place].data.ptr;
        if (!at) {
            uint64_t ticks;
            if (read(ticker, &ticks, sizeof ticks) < 0 && errno != EAGAIN) fail("the clock: %s", strerror(errno));
            continue;
        }
        if (events[place].events & ~(unsigned)EPOLLOUT) receive(at);
        flush(at);
    }
    now = clock_s();
    if (plan.rate) write_due();
    give_late_credit();
}

static int by_size(const void *one, const void *other) {
    float difference = *(const float *)one - *(const float *)other;
    return difference < 0 ? -1 : difference > 0;
}

static void print_waits(const char *name, Samples *samples) {
    if (!samples->count) return;
    qsort(samples->ms, samples->count, sizeof(float), by_size);
    printf(", \"%s_p50_ms\": %.4f, \"%s_p99_ms\": %.4f", name, samples->ms[samples->count / 2], name,
           samples->ms[(size_t)((double)samples->count * 0.99)]);
}

static void print_figures(double seconds, uint64_t answers, uint64_t deliveries, uint64_t bytes, double cpu) {
    uint64_t least = UINT64_MAX, most = 0;
    for (int place = 0; place < connection_count; place++) {
        if (!connections[place]->reads) continue;
        if (connections[place]->delivered < least) least = connections[place]->delivered;
        if (connections[place]->delivered > most) most = connections[place]->delivered;
    }
    printf("{\"seconds\": %.6f, \"answered\": %lu, \"delivered\": %lu, \"delivered_bytes\": %lu, \"cpu_share\": %.4f",
           seconds, answers, deliveries, bytes, cpu / seconds);
    if (most) printf(", \"reader_least\": %lu, \"reader_most\": %lu", least, most);
    print_waits("answer", &answer_waits);
    print_waits("delivery", &delivery_waits);
    printf("}\n");
}

static int goes_on(double end) {
    if (plan.until) return delivered_records < plan.until;
    return plan.writes ? written < plan.writes || under_way : now < end;
}

int main(void) {
    uint64_t answers = 0, deliveries = 0, bytes = 0;
    read_plan();
    begin();
    int ticker = plan.rate ? start_ticking() : -1;
    double cpu = cpu_s(), end = began + plan.warm_s + plan.measure_s;
    measured_from = began;
    while (goes_on(end)) {
        if (!measuring && now >= began + plan.warm_s) {
            measuring = 1;
            measured_from = now;
            answers = answered_records, deliveries = delivered_records, bytes = delivered_bytes;
            cpu = cpu_s();
        }
        turn_loop(ticker);
    }
    double seconds = now - measured_from, used = cpu_s() - cpu;
    answers = answered_records - answers, deliveries = delivered_records - deliveries, bytes = delivered_bytes - bytes;
    writing = measuring = 0;
    while (under_way && now < end + DRAIN_S_MAX) turn_loop(ticker);
    print_figures(seconds, answers, deliveries, bytes, used);
    return 0;
}
