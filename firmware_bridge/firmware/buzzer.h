/* What the buzzer says. */
#ifndef BUZZER_H
#define BUZZER_H

#include <stdbool.h>
#include <stdint.h>

/* The more pressing a sound, the later it stands: it cuts those before it short. */
enum sound { SOUND_NONE, SOUND_TICK, SOUND_DROPPED, SOUND_OPACITY, SOUND_VERDICT_ENDED, SOUND_TEST };

/* Begins as all zeros. */
struct buzzer {
    uint8_t sound;  /* an enum sound */
    uint16_t since; /* ms since it began */
};

/* Begin a sound, unless a more pressing one is being made. */
void buzzer_say(struct buzzer *buzzer, enum sound sound);

/* A millisecond has passed. */
void buzzer_tick(struct buzzer *buzzer);

/* The tone to be heard now in Hz, 0 for silence. silent: all but the test are to be kept quiet. */
uint16_t buzzer_tone(const struct buzzer *buzzer, bool silent);

#endif
