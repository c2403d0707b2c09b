#include "buzzer.h"

static const struct {
    uint16_t tone;  /* Hz */
    uint16_t on;    /* ms */
    uint16_t every; /* ms from one beep to the next */
    uint8_t beeps;
} SOUNDS[] = {
    [SOUND_TICK] = {2500, 12, 12, 1},
    [SOUND_DROPPED] = {440, 700, 700, 1},
    [SOUND_OPACITY] = {2500, 250, 250, 1},
    [SOUND_VERDICT_ENDED] = {1250, 150, 250, 2},
    [SOUND_TEST] = {2500, 500, 500, 1},
};

void buzzer_say(struct buzzer *buzzer, enum sound sound)
{
    if (sound >= buzzer->sound)
        *buzzer = (struct buzzer){.sound = (uint8_t)sound};
}

void buzzer_tick(struct buzzer *buzzer)
{
    if (buzzer->sound == SOUND_NONE)
        return;
    if (++buzzer->since >= SOUNDS[buzzer->sound].every * SOUNDS[buzzer->sound].beeps)
        buzzer->sound = SOUND_NONE;
}

uint16_t buzzer_tone(const struct buzzer *buzzer, bool silent)
{
    if (buzzer->sound == SOUND_NONE || (silent && buzzer->sound != SOUND_TEST))
        return 0;
    const bool on = buzzer->since % SOUNDS[buzzer->sound].every < SOUNDS[buzzer->sound].on;
    return on ? SOUNDS[buzzer->sound].tone : 0;
}
