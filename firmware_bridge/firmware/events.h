/* What was done to the buttons, waiting until the box has it. */
#ifndef EVENTS_H
#define EVENTS_H

#include <stdbool.h>
#include <stdint.h>

enum {
    EVENTS_WAITING = 8,
    EVENT_REPEAT_MS = 50,
    EVENT_OLD_MS = 2000,
    EVENTS_LOST_MS = 10000, /* for which a loss is told */
};

struct event {
    uint8_t button;
    uint8_t kind;
    uint16_t age; /* ms since it happened */
};

/* First in, first out. Begins as all zeros. */
struct events {
    struct event waiting[EVENTS_WAITING];
    uint8_t count;
    uint8_t number; /* of the first that waits: counts a boot's events, modulo 256 */
    bool sent;
    uint8_t since_sent; /* ms */
    uint16_t lost_told; /* ms for which it is still to be told that some were lost: too many waited */
};

/* False where too many wait already: it is lost. */
bool events_add(struct events *events, uint8_t button, uint8_t kind);

/* A millisecond has passed. True when an event was dropped because it had become too old. */
bool events_tick(struct events *events);

/* The first that waits, when it is time to send it (again), else NULL. */
const struct event *events_due(const struct events *events);

/* It was sent. */
void events_sent(struct events *events);

/* The box has the event of this number. Its kind when that is the one that waited for it, else 0. */
uint8_t events_got(struct events *events, uint8_t number);

#endif
