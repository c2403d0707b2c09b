#include "buttons.h"

#include <stdbool.h>

/* Whether this sample and those before it are to be believed. */
static bool settled(struct buttons *buttons, uint8_t n, uint8_t closed)
{
    const uint8_t bit = (uint8_t)(1 << n);
    if ((closed ^ buttons->sampled) & bit)
        buttons->equal[n] = 0;
    if (buttons->equal[n] < DEBOUNCE_MS)
        buttons->equal[n]++;
    return buttons->equal[n] == DEBOUNCE_MS;
}

void buttons_tick(struct buttons *buttons, uint8_t closed, button_did *did, void *listener)
{
    for (uint8_t n = 0; n < BUTTONS; n++) {
        const uint8_t bit = (uint8_t)(1 << n);
        const uint8_t button = (uint8_t)(n + 1);
        const bool was_down = buttons->down & bit;
        const bool armed = buttons->armed & bit;
        if (settled(buttons, n, closed))
            buttons->down = (uint8_t)((buttons->down & ~bit) | (closed & bit));
        const bool is_down = buttons->down & bit;

        if (!is_down && buttons->equal[n] == DEBOUNCE_MS)
            buttons->armed |= bit;
        if (!armed)
            continue;
        if (is_down && !was_down) {
            buttons->held[n] = 0;
            did(listener, button, KIND_PRESS);
        } else if (is_down && buttons->held[n] < LONG_MS && ++buttons->held[n] == LONG_MS) {
            did(listener, button, KIND_LONG);
        } else if (was_down && !is_down && buttons->held[n] < LONG_MS) {
            did(listener, button, KIND_CLICK);
        }
    }
    buttons->sampled = closed;
}
