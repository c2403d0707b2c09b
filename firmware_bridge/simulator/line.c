#include "line.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

enum { ROOM = 4096 };

static int terminal = -1;
static int watcher = -1; /* tells of every opening and closing, however short */
static const char *link_name;
static int users;
static bool data_terminal_ready;
static struct line_counts counts;

static uint8_t inbound[ROOM], outbound[ROOM];
static size_t in_first, in_count, out_count;

static double flip_share, lose_share;
static uint64_t generator;

/* splitmix64 (Steele, Lea, Flood 2014): any seed will do. */
static uint64_t draw(void) {
    uint64_t z = generator += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static double draw_share(void) {
    return (double)(draw() >> 11) * 0x1p-53;
}

uint32_t line_baud(void) {
    static const struct {
        speed_t code;
        uint32_t baud;
    } speeds[] = {{B19200, 19200}, {B38400, 38400}, {B57600, 57600}, {B115200, 115200}};
    struct termios settings;
    if (tcgetattr(terminal, &settings) == 0)
        for (size_t i = 0; i < sizeof speeds / sizeof *speeds; i++)
            if (cfgetospeed(&settings) == speeds[i].code)
                return speeds[i].baud;
    return 9600;
}

/* What the line makes of a byte; false where it swallows it. Half a bit off at the ninth, and it is sampled
   as another. */
static bool carry(uint8_t *byte, uint32_t baud) {
    uint32_t host = line_baud();
    if (host * 20ULL < baud * 19ULL || host * 19ULL > baud * 20ULL) {
        *byte = (uint8_t)draw();
        counts.garbled++;
    }
    if (draw_share() < lose_share) {
        counts.lost++;
        return false;
    }
    if (draw_share() < flip_share) {
        *byte ^= (uint8_t)(1 << draw() % 8);
        counts.flipped++;
    }
    return true;
}

void line_unplug(void) {
    if (link_name != NULL)
        unlink(link_name);
    if (terminal >= 0)
        close(terminal);
    if (watcher >= 0)
        close(watcher);
    terminal = watcher = -1;
    link_name = NULL;
    users = 0;
}

bool line_plug(const char *link) {
    terminal = posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0) {
        perror("no pseudo-terminal");
        return false;
    }
    const char *name = ptsname(terminal);
    struct termios settings;
    tcgetattr(terminal, &settings);
    cfmakeraw(&settings);
    cfsetspeed(&settings, B57600);
    settings.c_cflag |= HUPCL; /* as a serial port has it until somebody clears it */
    tcsetattr(terminal, TCSANOW, &settings);
    /* Only after the first close does the kernel tell whether anybody has it open. */
    close(open(name, O_RDWR | O_NOCTTY));
    watcher = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watcher < 0 || inotify_add_watch(watcher, name, IN_OPEN | IN_CLOSE) < 0) {
        perror("no inotify");
        line_unplug();
        return false;
    }
    struct stat there;
    if (lstat(link, &there) == 0 && S_ISLNK(there.st_mode))
        unlink(link); /* of one that was killed */
    if (symlink(name, link) != 0) {
        perror(link);
        line_unplug();
        return false;
    }
    link_name = link;
    data_terminal_ready = false;
    users = 0;
    in_count = out_count = 0;
    return true;
}

int line_descriptor(void) {
    return users > 0 && in_count < ROOM ? terminal : -1;
}

int line_watcher(void) {
    return watcher;
}

static void take_in(void) {
    while (in_count < ROOM) {
        size_t end = (in_first + in_count) % ROOM;
        size_t room = end < in_first ? in_first - end : ROOM - end;
        ssize_t got = read(terminal, inbound + end, room);
        if (got <= 0)
            return;
        in_count += (size_t)got;
    }
}

static void closed_by_all(void) {
    struct termios settings;
    users = 0;
    data_terminal_ready = tcgetattr(terminal, &settings) == 0 && !(settings.c_cflag & HUPCL);
    out_count = 0;
}

/* True where that raises DTR. */
static bool opened(void) {
    bool raised = users++ == 0 && !data_terminal_ready;
    data_terminal_ready = true;
    return raised;
}

static bool heed_openings(void) {
    union {
        struct inotify_event first; /* for its alignment */
        char bytes[ROOM];
    } events;
    bool raised = false;
    ssize_t got = read(watcher, events.bytes, sizeof events.bytes);
    for (ssize_t at = 0; at < got;) {
        struct inotify_event event;
        memcpy(&event, events.bytes + at, sizeof event);
        at += (ssize_t)(sizeof event + event.len);
        if (event.mask & IN_OPEN)
            raised |= opened();
        else if (event.mask & IN_CLOSE && users > 0 && --users == 0)
            closed_by_all();
    }
    return raised;
}

bool line_attend(void) {
    if (terminal < 0)
        return false;
    struct pollfd poller = {.fd = terminal, .events = POLLIN};
    bool raised = heed_openings();
    poll(&poller, 1, 0);
    if (poller.revents & POLLIN)
        take_in();
    /* Events may come a moment later, and of several alike at once only one. */
    if (poller.revents & POLLHUP && users > 0)
        closed_by_all();
    if (!(poller.revents & POLLHUP) && users == 0)
        raised |= opened();
    return raised;
}

bool line_waiting(void) {
    return in_count > 0;
}

bool line_next(uint8_t *byte, uint32_t baud) {
    if (in_count == 0)
        return false;
    *byte = inbound[in_first];
    in_first = (in_first + 1) % ROOM;
    in_count--;
    counts.to_part++;
    return carry(byte, baud);
}

void line_send(uint8_t byte, uint32_t baud) {
    counts.to_host++;
    if (users > 0 && carry(&byte, baud) && out_count < ROOM)
        outbound[out_count++] = byte;
}

void line_flush(void) {
    ssize_t gone = out_count ? write(terminal, outbound, out_count) : 0;
    if (gone <= 0)
        return;
    out_count -= (size_t)gone;
    memmove(outbound, outbound + gone, out_count);
}

void line_noise(double flipped, double lost, uint64_t seed) {
    flip_share = flipped;
    lose_share = lost;
    generator = seed;
}

struct line_counts line_counts(void) {
    return counts;
}
