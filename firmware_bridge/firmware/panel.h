/* The whole panel apart from its pins: bytes, samples and milliseconds go in, lamps, tones and bytes come
   out. */
#ifndef PANEL_H
#define PANEL_H

#include "analog.h"
#include "buttons.h"
#include "buzzer.h"
#include "events.h"
#include "lamps.h"
#include "wire.h"

enum { FIRMWARE_MAJOR = 1, FIRMWARE_MINOR = 0 };

struct panel {
    struct wire_reader reader;
    struct lamps lamps;
    struct buttons buttons;
    struct events events;
    struct buzzer buzzer;
    struct analog analog;
    uint16_t boot;
    uint8_t reset_cause;
    uint8_t sequence;
    bool muted;
    bool quiet;
    bool hello_due;
    bool status_due;
    uint16_t since_status; /* ms */
    uint16_t since_beep;   /* ms since opacity was last told */
    uint16_t uptime_s;
    uint16_t uptime_ms; /* of the second */
};

/* boot: another number at every start. reset_cause: the ATmega's MCUSR. */
void panel_start(struct panel *panel, uint16_t boot, uint8_t reset_cause);

/* A byte has come. */
void panel_hear(struct panel *panel, uint8_t byte);

/* A millisecond has passed. closed: the buttons whose contacts are closed, bit n-1 for button n. muted: the
   mute switch is closed. */
void panel_tick(struct panel *panel, uint8_t closed, bool muted);

/* Writes the frame that is most pressing to out, if one is due; returns its bytes, 0 for none. */
uint8_t panel_say(struct panel *panel, uint8_t out[WIRE_LONGEST + 1]);

/* The tone to be heard now in Hz, 0 for silence. */
uint16_t panel_tone(const struct panel *panel);

/* Whether the box is heard. */
bool panel_linked(const struct panel *panel);

#endif
