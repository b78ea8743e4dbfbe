/* What fanning out costs at least: a WebSocket server in C that does nothing else.
 *
 *     fanout FRAMES
 *
 * Listens on a free port of loopback, which it prints. Who connects to /push, one at a time, sends binary messages; each goes to all who
 * connected to /, FRAMES times in one send, as if so many had come, and is then answered by an empty one. The load's
 * key is always the same, and so is the answer to it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOCKETS 65536
#define EVENTS 256
#define HELD 65536       /* bytes that were read of pushes and are not whole yet */
#define PAYLOAD 60000
#define FRAMES_MAX 64

static const char SHAKEN[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n";
static const unsigned char DONE[] = {0x82, 0};

enum state { NEW, LISTENS, PUSHES };
static enum state states[SOCKETS];
static int listeners[SOCKETS], count, frames;
static unsigned char held[HELD], joined[FRAMES_MAX * (PAYLOAD + 4)];
static size_t holding;

static void fail(const char *why) {
    perror(why);
    exit(2);
}

static void fan_out(unsigned char *mask, unsigned char *payload, size_t size) {
    unsigned char *end = joined;
    for (size_t i = 0; i < size; i++) payload[i] ^= mask[i & 3];
    for (int i = 0; i < frames; i++) {
        *end++ = 0x82;
        if (size >= 126) {
            *end++ = 126;
            *end++ = size >> 8;
        }
        *end++ = size;
        memcpy(end, payload, size);
        end += size;
    }
    for (int i = 0; i < count; i++)
        if (send(listeners[i], joined, end - joined, MSG_DONTWAIT) != end - joined) fail("a listener does not read");
}

static void take_pushes(int fd) {
    unsigned char *p = held;
    ssize_t got = recv(fd, held + holding, sizeof held - holding, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        close(fd);
        holding = 0;
        return;
    }
    holding += got;
    for (;;) {
        size_t here = held + holding - p, head = 6, size;
        if (here < 2) break;
        size = p[1] & 127;
        if (size == 126) {
            head = 8;
            if (here < 4) break;
            size = p[2] << 8 | p[3];
        }
        if (here < head + size) break;
        fan_out(p + head - 4, p + head, size);
        if (send(fd, DONE, sizeof DONE, MSG_DONTWAIT) < 0) fail("the pusher does not read");
        p += head + size;
    }
    holding -= p - held;
    memmove(held, p, holding);
}

static void hear(int fd) {
    char request[4096];
    if (states[fd] == PUSHES) {
        take_pushes(fd);
        return;
    }
    ssize_t got = recv(fd, request, sizeof request - 1, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) fail("a listener has left");
    if (states[fd] != NEW) return;
    request[got] = 0;
    states[fd] = strncmp(request, "GET /push ", 10) ? LISTENS : PUSHES;
    if (states[fd] == LISTENS) listeners[count++] = fd;
    if (send(fd, SHAKEN, sizeof SHAKEN - 1, 0) < 0) fail("no handshake");
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
    socklen_t size = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0), one = 1;
    frames = argc > 1 ? atoi(argv[1]) : 1;
    if (frames < 1 || frames > FRAMES_MAX) return 2;
    signal(SIGPIPE, SIG_IGN);
    if (bind(listening, (void *)&address, size) || listen(listening, 4096)) fail("listen");
    getsockname(listening, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    event.data.fd = listening;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listening) {
                hear(fd);
                continue;
            }
            if ((fd = accept4(listening, 0, 0, SOCK_NONBLOCK)) < 0) continue;
            if (fd >= SOCKETS) fail("too many sockets");
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            states[fd] = NEW;
            event.data.fd = fd;
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
