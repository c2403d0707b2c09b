/* What the lamps show: the rules and patterns of lamps.def. */
#ifndef LAMPS_H
#define LAMPS_H

#include <stdbool.h>
#include <stdint.h>

enum shown {
#define SHOWN(number, name, normal, opacity, no_reading) SHOWN_##name = (number),
#include "lamps.def"
    SHOWN_ASKED, /* in the rules: what the box asked for */
};

enum {
#define LIMIT(name, milliseconds) name = (milliseconds),
#include "lamps.def"
};

enum lamp { LAMP_NORMAL = 1, LAMP_OPACITY = 2, LAMP_NO_READING = 4 };

struct lamps {
    uint8_t asked; /* as the last show said */
    uint32_t reading;
    uint16_t silence; /* ms since the last show */
    uint16_t age;     /* ms since the last reading */
    uint16_t same;    /* ms since the reading's number changed */
    bool heard;       /* there was a show since the start */
    uint8_t shown;
    uint8_t step; /* of the pattern, 0 to 15 */
    uint8_t within; /* the step, in half milliseconds */
};

void lamps_start(struct lamps *lamps);

/* The box says what to show. age: in ms, of the last reading, whose number is given. */
void lamps_heard(struct lamps *lamps, uint8_t asked, uint32_t reading, uint16_t age);

/* A millisecond has passed. */
void lamps_tick(struct lamps *lamps);

/* The lamps that are lit now, as bits of enum lamp. */
uint8_t lamps_lit(const struct lamps *lamps);

/* Whether it says something about the lung. */
bool is_verdict(uint8_t shown);

#endif
