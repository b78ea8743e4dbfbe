/* What the traffic generator (traffic.c) and the protocols that it speaks (traffic_protocols.c) share. */
#ifndef TRAFFIC_H
#define TRAFFIC_H

#include <stddef.h>
#include <stdint.h>

enum { LANES_MAX = 32, UNANSWERED_MAX = 4096 };

/* Bytes that grow. What was read of an input is dropped from its front now and then. */
typedef struct {
    unsigned char *data;
    size_t size, room;
} Bytes;

/* Writes of one stream over one connection: at most `window` of them unanswered. Its message is what stands before the
   number, the number as a varint (Sealwire alone), and what stands after it. */
typedef struct {
    Bytes before, after;
    unsigned char key[16]; /* what an answer names: a vault */
    uint64_t number;       /* of the next write */
    uint32_t window, under_way, records;
    uint64_t sent, answered;
    double sent_at[UNANSWERED_MAX];
} Lane;

typedef struct {
    int fd, waits_to_write;
    Bytes in, out;
    Lane *lanes[LANES_MAX];
    int lane_count;
    Bytes again;           /* a reader's next request, without the place that it goes on from */
    uint64_t again_every;  /* NATS: records after which to ask again; 0: never */
    uint64_t since_asked;
    uint64_t delivered;
    uint64_t bytes_due;          /* Sealwire: received, and no credit given back for it yet */
    double due_since;            /* since when there are such bytes */
    unsigned char position[64];  /* what they lead to, as an ACK names it: vault, stream, term, seq */
    size_t position_size;
    int reads, depth, place_next; /* Redis: values that the reply still lacks */
    char place[64];               /* Redis: the last entry's id */
    size_t place_size;
} Connection;

typedef struct {
    double warm_s, measure_s, rate;  /* rate: writes a second in all; 0: as fast as answers come */
    uint64_t until;                  /* records read in all after which to end; 0: by the clock */
    uint64_t writes;                 /* writes answered after which to end; 0: by the clock */
    uint32_t credit_bytes;           /* Sealwire: bytes received after which to give credit back, */
    double credit_s;                 /* or time after the first of them */
    uint32_t payload_bytes;          /* peers: a record's size, by which it is told from other values */
    uint32_t record_bytes, stamp_at; /* where a record's time stands: from the record's end; 0: nowhere */
} Plan;

extern Plan plan;
extern double now; /* when what is looked at was received */

void append(Bytes *to, const void *data, size_t size);
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

/* Called by a protocol: a write was answered; `records` were delivered, of which the last ends at `end`. */
void answered(Connection *at, Lane *lane);
void delivered(Connection *at, const unsigned char *end, uint64_t records);

/* A protocol: takes whole messages out of the bytes from `from` on, and returns how many bytes it has taken. */
typedef size_t (*Parse)(Connection *at, const unsigned char *from, size_t size);
size_t parse_sealwire(Connection *at, const unsigned char *from, size_t size);
size_t parse_redis(Connection *at, const unsigned char *from, size_t size);
size_t parse_nats(Connection *at, const unsigned char *from, size_t size);

/* Sealwire: give back all credit that is due. */
void give_credit(Connection *at);

void append_frame(Bytes *to, const void *before, size_t before_size, const void *number, size_t number_size,
                  const void *after, size_t after_size);
size_t varint(unsigned char *to, uint64_t value);

#endif
