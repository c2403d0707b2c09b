/* The dial and the battery, measured in turn by one converter with two references. */
#ifndef ANALOG_H
#define ANALOG_H

#include <stdbool.h>
#include <stdint.h>

enum channel { CHANNEL_DIAL, CHANNEL_BATTERY };

struct analog {
    uint8_t channel; /* an enum channel: what the next sample must be of */
    uint8_t count;   /* samples since the channel was chosen */
    uint16_t sum;
    uint8_t dial;        /* 0 to 255 */
    uint16_t battery_mv; /* 0: none */
};

/* The lamps are bright until the dial is known. */
void analog_start(struct analog *analog);

/* Takes a 10-bit sample of the channel asked for, one a millisecond. */
void analog_add(struct analog *analog, uint16_t sample);

/* How bright the lamps are to be, of 255: never wholly dark. */
uint8_t analog_brightness(const struct analog *analog);

#endif
