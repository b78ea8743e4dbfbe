/* The protocols that the traffic generator speaks, as far as a writer and a reader need them. */
#define _GNU_SOURCE
#include "traffic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- Sealwire (protocol/PROTOCOL.md): binary WebSocket frames, ours masked with zeros, which changes nothing in them */

enum { ACK = 0x86, DELIVER = 0xC4, PUSHED = 0xC5, FAULT = 0xC8, DONE = 0, FAULT_TEXT_AT = 30 };

size_t varint(unsigned char *to, uint64_t value) {
    size_t size = 0;
    for (; value >= 0x80; value >>= 7) to[size++] = (unsigned char)(value | 0x80);
    to[size++] = (unsigned char)value;
    return size;
}

static uint64_t read_varint(const unsigned char **at) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        unsigned char byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
}

static uint64_t big_endian(const unsigned char *at, int size) {
    uint64_t value = 0;
    while (size--) value = value << 8 | *at++;
    return value;
}

void append_frame(Bytes *to, const void *before, size_t before_size, const void *number, size_t number_size,
                  const void *after, size_t after_size) {
    unsigned char head[14] = {0x82};
    size_t size = before_size + number_size + after_size, wide = size < 126 ? 0 : size < 65536 ? 2 : 8;
    head[1] = (unsigned char)(0x80 | (wide == 0 ? size : wide == 2 ? 126 : 127));
    for (size_t place = 0; place < wide; place++) head[2 + place] = (unsigned char)(size >> 8 * (wide - 1 - place));
    append(to, head, 2 + wide + 4);
    append(to, before, before_size);
    append(to, number, number_size);
    append(to, after, after_size);
}

void give_credit(Connection *at) {
    unsigned char head[7] = {ACK, 0, 0, 0, 0, 0, 1};
    for (int place = 0; place < 4; place++) head[1 + place] = (unsigned char)(at->bytes_due >> 8 * (3 - place));
    append_frame(&at->out, head, sizeof head, at->position, at->position_size, "", 0);
    at->bytes_due = 0;
}

/* A DELIVER's bytes are due as credit; its vault and stream, its term and its last seq are where they lead to. */
static void note_due(Connection *at, const unsigned char *message, size_t size, size_t term_size, uint64_t last) {
    size_t named = 24 + term_size;
    if (!at->bytes_due) at->due_since = now;
    at->bytes_due += size;
    memcpy(at->position, message + 1, named);
    at->position_size = named + varint(at->position + named, last);
    if (at->bytes_due >= plan.credit_bytes) give_credit(at);
}

static void take_message(Connection *at, const unsigned char *message, size_t size) {
    const unsigned char *field = message + 17;
    if (message[0] == PUSHED) {
        read_varint(&field);
        if (*field != DONE) fail("a push was refused: outcome %d", *field);
        for (int lane = 0; lane < at->lane_count; lane++)
            if (memcmp(at->lanes[lane]->key, message + 1, 16) == 0) return answered(at, at->lanes[lane]);
        fail("an answer to a push that was not made");
    } else if (message[0] == DELIVER) {
        const unsigned char *term = field += 8;
        read_varint(&field);
        field += 8;
        size_t term_size = (size_t)(field - term);
        for (int skipped = 0; skipped < 4; skipped++) read_varint(&field);
        uint64_t prev = read_varint(&field), last = read_varint(&field);
        if (memcmp(message + 17, "\0\0\0\0\0\0\0", 8) == 0) return; /* links, which are no records */
        delivered(at, message + size, last - prev);
        note_due(at, message, size, term_size, last);
    } else if (message[0] == FAULT) {
        fail("the relay says: %.*s", (int)size - FAULT_TEXT_AT, message + FAULT_TEXT_AT);
    }
}

size_t parse_sealwire(Connection *at, const unsigned char *from, size_t size) {
    size_t taken = 0;
    while (size - taken >= 2) {
        const unsigned char *frame = from + taken;
        size_t length = frame[1], head = length == 126 ? 4 : length == 127 ? 10 : 2;
        if (size - taken < head) break;
        if (head > 2) length = big_endian(frame + 2, (int)head - 2);
        if (size - taken < head + length) break;
        if (frame[0] == 0x88) fail("the relay hung up: %.*s", length > 2 ? (int)length - 2 : 0, frame + head + 2);
        if (frame[0] == 0x89) append(&at->out, "\x8A\x80\0\0\0\0", 6);
        if (frame[0] == 0x82) take_message(at, frame + head, length);
        taken += head + length;
    }
    return taken;
}

/* --- Redis (RESP2): replies are lines, and strings and arrays after their length */

static void ask_redis_again(Connection *at) {
    char length[16];
    append(&at->out, at->again.data, at->again.size);
    append(&at->out, length, (size_t)sprintf(length, "$%zu\r\n", at->place_size));
    append(&at->out, at->place, at->place_size);
    append(&at->out, "\r\n", 2);
}

/* One string of a reply. An entry's id is the one string of it with a dash that follows the opening of an array. */
static void take_string(Connection *at, const unsigned char *text, size_t size, int opens) {
    if (!at->reads) return;
    if (size == plan.payload_bytes) {
        delivered(at, text + size + 2, 1);
    } else if (opens && size < sizeof at->place && memchr(text, '-', size)) {
        memcpy(at->place, text, size);
        at->place_size = size;
    }
}

size_t parse_redis(Connection *at, const unsigned char *from, size_t size) {
    size_t taken = 0;
    while (size > taken) {
        const unsigned char *line = from + taken, *end = memchr(line, '\n', size - taken);
        if (!end) break;
        long length = line[0] == '*' || line[0] == '$' ? strtol((const char *)line + 1, NULL, 10) : 0;
        size_t needed = (size_t)(end + 1 - line) + (line[0] == '$' && length >= 0 ? (size_t)length + 2 : 0);
        if (size - taken < needed) break;
        if (line[0] == '-') fail("Redis says: %.*s", (int)(end - line), line);
        if (at->depth == 0) at->depth = 1;
        if (line[0] == '*') at->depth += length > 0 ? (int)length : 0;
        if (line[0] == '$' && length >= 0) take_string(at, end + 1, (size_t)length, at->place_next);
        at->place_next = line[0] == '*';
        taken += needed;
        if (--at->depth) continue;
        if (at->lane_count) answered(at, at->lanes[0]);
        if (at->reads) ask_redis_again(at);
    }
    return taken;
}

/* --- NATS: lines; MSG and HMSG are followed by as many bytes as their last word says */

static void take_nats(Connection *at, const unsigned char *payload, size_t size, int with_head) {
    if (at->reads && !with_head && size == plan.payload_bytes) {
        delivered(at, payload + size + 2, 1);
        if (at->again_every && ++at->since_asked == at->again_every) {
            append(&at->out, at->again.data, at->again.size);
            at->since_asked = 0;
        }
    } else if (at->lane_count) {
        if (memmem(payload, size, "\"error\"", 7) || with_head) fail("JetStream says: %.*s", (int)size, payload);
        answered(at, at->lanes[0]);
    }
}

size_t parse_nats(Connection *at, const unsigned char *from, size_t size) {
    size_t taken = 0;
    while (size > taken) {
        const unsigned char *line = from + taken, *end = memchr(line, '\n', size - taken), *word = end;
        if (!end) break;
        size_t needed = (size_t)(end + 1 - line);
        if (line[0] == 'M' || line[0] == 'H') {
            while (word[-1] != ' ') word--;
            size_t length = strtoul((const char *)word, NULL, 10);
            if (size - taken < needed + length + 2) break;
            take_nats(at, end + 1, length, line[0] == 'H');
            needed += length + 2;
        } else if (line[0] == '-') {
            fail("NATS says: %.*s", (int)(end - line), line);
        } else if (line[0] == 'P' && line[1] == 'I') {
            append(&at->out, "PONG\r\n", 6);
        }
        taken += needed;
    }
    return taken;
}
