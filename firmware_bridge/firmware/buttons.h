/* From contacts that bounce to presses. */
#ifndef BUTTONS_H
#define BUTTONS_H

#include <stdint.h>

enum {
    BUTTONS = 5,
    DEBOUNCE_MS = 10, /* equal samples in a row, one a millisecond */
    LONG_MS = 800,
};

enum kind { KIND_PRESS = 1, KIND_LONG = 2, KIND_CLICK = 3 };

/* Sets of buttons have bit n-1 for button n. Begins as all zeros. */
struct buttons {
    uint8_t sampled; /* closed in the last sample */
    uint8_t down;    /* closed for long enough to be believed */
    uint8_t armed;   /* seen open since the start: one that is down at the start does nothing */
    uint8_t equal[BUTTONS];
    uint16_t held[BUTTONS]; /* ms, up to LONG_MS */
};

typedef void button_did(void *listener, uint8_t button, enum kind kind);

/* Takes the sample of a millisecond: the set of buttons whose contacts are closed. Tells the listener, for
   buttons 1 to 5, of everything that was done. */
void buttons_tick(struct buttons *buttons, uint8_t closed, button_did *did, void *listener);

#endif
