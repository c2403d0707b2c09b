#include "analog.h"

enum {
    /* Samples not looked at after a change of reference: 32 kOhm inside (ATmega328P data sheet, table 28-16)
       must charge 100 nF on AREF, time constant 3.2 ms, to one part in a thousand of 5 V. */
    SETTLING = 36,
    SUMMED = 64, /* whose sum is then 16 bits of full scale */
    FULL_SCALE_MV = 17600, /* 1.1 V times (150 kOhm + 10 kOhm) / 10 kOhm */
    NO_BATTERY_MV = 1000,
    DIMMEST = 32,
};

void analog_start(struct analog *analog)
{
    *analog = (struct analog){.channel = CHANNEL_DIAL, .dial = UINT8_MAX};
}

static void use(struct analog *analog)
{
    if (analog->channel == CHANNEL_DIAL) {
        analog->dial = (uint8_t)(analog->sum >> 8);
        analog->channel = CHANNEL_BATTERY;
        return;
    }
    const uint16_t millivolts = (uint16_t)((uint32_t)analog->sum * FULL_SCALE_MV >> 16);
    analog->battery_mv = millivolts < NO_BATTERY_MV ? 0 : millivolts;
    analog->channel = CHANNEL_DIAL;
}

void analog_add(struct analog *analog, uint16_t sample)
{
    analog->count++;
    if (analog->count <= SETTLING)
        return;
    analog->sum = (uint16_t)(analog->sum + sample);
    if (analog->count == SETTLING + SUMMED) {
        use(analog);
        analog->count = 0;
        analog->sum = 0;
    }
}

uint8_t analog_brightness(const struct analog *analog)
{
    return analog->dial < DIMMEST ? DIMMEST : analog->dial;
}
