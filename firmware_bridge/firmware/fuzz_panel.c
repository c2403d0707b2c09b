/* libFuzzer: any bytes, presses and times through the whole panel. It must never show a verdict that the box
   did not ask for or that is not young any more, and its events must be in order. */
#include <stdlib.h>
#include <string.h>

#include "panel.h"

enum { BOOT = 0x0102 };

static struct panel panel;

/* What was truly sent to the panel and when, by a clock of 32 bits that only runs forward. */
static uint32_t now;
static struct {
    bool heard;
    uint8_t asked;
    uint32_t reading;
    uint32_t heard_at, changed_at, read_before; /* read_before: age when heard */
} truth;
static struct wire_reader box, ear; /* what the box hears of the panel; what the panel hears of the box */
static struct wire_frame event;     /* the last */
static uint8_t sequence;

static void demand(bool condition)
{
    if (!condition)
        abort();
}

static void note(const struct wire_frame *frame)
{
    if (frame->code != WIRE_SHOW || frame->payload[8] != WIRE_VERSION)
        return;
    const uint32_t reading = wire_u32(frame->payload + 1);
    if (!truth.heard || reading != truth.reading)
        truth.changed_at = now;
    truth.heard = true;
    truth.asked = frame->payload[0];
    truth.reading = reading;
    truth.heard_at = now;
    truth.read_before = wire_u16(frame->payload + 5);
}

static void hear(const uint8_t *bytes, size_t length)
{
    struct wire_frame frame;
    for (size_t i = 0; i < length; i++) {
        if (wire_feed(&ear, bytes[i], &frame))
            note(&frame);
        panel_hear(&panel, bytes[i]);
    }
}

static void send(struct wire_frame *frame, uint8_t code)
{
    uint8_t bytes[WIRE_LONGEST + 1];
    frame->code = code;
    hear(bytes, wire_encode(frame, bytes));
}

static void check_event(const struct wire_frame *frame)
{
    const bool again = event.code && event.payload[2] == frame->payload[2];
    demand(!again || memcmp(event.payload, frame->payload, 5) == 0);
    demand(wire_u16(frame->payload) == BOOT && wire_u16(frame->payload + 5) <= EVENT_OLD_MS);
    event = *frame;
}

static void say(void)
{
    uint8_t bytes[WIRE_LONGEST + 1];
    struct wire_frame frame;
    for (uint8_t length = panel_say(&panel, bytes); length > 0; length = panel_say(&panel, bytes)) {
        for (uint8_t i = 0; i < length; i++)
            demand(wire_feed(&box, bytes[i], &frame) == (i == length - 1));
        demand(frame.sequence == sequence++);
        if (frame.code == WIRE_EVENT)
            check_event(&frame);
        else
            demand(frame.code == WIRE_HELLO || frame.code == WIRE_STATUS);
    }
}

static void tick(uint8_t closed, bool muted)
{
    now++;
    panel_tick(&panel, closed, muted);
    const uint8_t shown = panel.lamps.shown;
    if (is_verdict(shown)) {
        demand(truth.heard && truth.asked == shown);
        demand(now - truth.heard_at < LINK_SILENT_MS);
        demand(now - truth.heard_at + truth.read_before < READING_OLD_MS);
        demand(now - truth.changed_at < READING_OLD_MS);
    } else {
        demand(!(lamps_lit(&panel.lamps) & (LAMP_NORMAL | LAMP_OPACITY)) || shown == SHOWN_TEST);
    }
    demand(shown < SHOWN_ASKED && panel.events.count <= EVENTS_WAITING);
    demand(panel_linked(&panel) == (truth.heard && now - truth.heard_at < LINK_SILENT_MS));
    demand(!muted || panel_tone(&panel) == 0 || panel.buzzer.sound == SOUND_TEST);
}

static void begin(void)
{
    panel_start(&panel, BOOT, 0);
    now = 0;
    sequence = 0;
    memset(&truth, 0, sizeof truth);
    memset(&box, 0, sizeof box);
    memset(&ear, 0, sizeof ear);
    memset(&event, 0, sizeof event);
}

/* Two bytes of the input are one thing that happens: which, and how. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t closed = 0;
    bool muted = false;
    uint32_t reading = 0;
    begin();
    for (size_t i = 0; i + 1 < size; i += 2) {
        const uint8_t how = data[i + 1];
        struct wire_frame frame = {.sequence = how};
        switch (data[i] % 8) {
        case 0:
            for (unsigned ms = 0; ms <= how * 8U; ms++) {
                tick(closed, muted);
                say();
            }
            break;
        case 1:
            tick(closed = how & 0x1F, muted);
            break;
        case 2:
            hear(&how, 1);
            break;
        case 3: /* how: the state asked for, the number's step, quiet, and an age */
            wire_add_u8(&frame, how % 5);
            wire_add_u32(&frame, reading += how >> 3 & 1);
            wire_add_u16(&frame, (uint16_t)((how >> 5) * 330));
            wire_add_u8(&frame, how >> 4 & 1);
            wire_add_u8(&frame, WIRE_VERSION);
            send(&frame, WIRE_SHOW);
            break;
        case 4:
            wire_add_u16(&frame, BOOT);
            wire_add_u8(&frame, how < 128 ? event.payload[2] : how);
            send(&frame, WIRE_GOT);
            break;
        case 5:
            wire_spoil(&panel.reader);
            wire_spoil(&ear);
            break;
        case 6:
            muted = how & 1;
            break;
        case 7:
            say();
            break;
        }
    }
    return 0;
}
