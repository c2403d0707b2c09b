#include "panel.h"

#include "timing.h"

enum {
    STATUS_MS = 250,
    BEEP_APART_MS = 5000,
    EVERYTHING = 1 | 2 | 4 | 8 | 16 | 32, /* buttons, lamps, buzzer, battery, dial, watchdog */
    FLAG_MUTED = 1,
    FLAG_EVENTS_LOST = 2,
};

void panel_start(struct panel *panel, uint16_t boot, uint8_t reset_cause)
{
    *panel = (struct panel){
        .boot = boot,
        .reset_cause = reset_cause,
        .hello_due = true,
        .since_beep = LONG_AGO,
    };
    lamps_start(&panel->lamps);
    analog_start(&panel->analog);
}

static void obey(struct panel *panel, const uint8_t *payload)
{
    if (payload[8] != WIRE_VERSION)
        return;
    lamps_heard(&panel->lamps, payload[0], wire_u32(payload + 1), wire_u16(payload + 5));
    panel->quiet = payload[7];
}

static void got(struct panel *panel, const uint8_t *payload)
{
    if (wire_u16(payload) != panel->boot)
        return;
    const uint8_t kind = events_got(&panel->events, payload[2]);
    if (kind == KIND_PRESS || kind == KIND_LONG) /* a click's press has ticked */
        buzzer_say(&panel->buzzer, SOUND_TICK);
}

void panel_hear(struct panel *panel, uint8_t byte)
{
    struct wire_frame frame;
    if (!wire_feed(&panel->reader, byte, &frame))
        return;
    if (frame.code == WIRE_SHOW)
        obey(panel, frame.payload);
    else if (frame.code == WIRE_ASK)
        panel->hello_due = true;
    else if (frame.code == WIRE_GOT)
        got(panel, frame.payload);
}

static void did(void *listener, uint8_t button, enum kind kind)
{
    struct panel *panel = listener;
    if (!events_add(&panel->events, button, (uint8_t)kind))
        buzzer_say(&panel->buzzer, SOUND_DROPPED);
}

static void shown_changed(struct panel *panel, uint8_t before, uint8_t now)
{
    panel->status_due = true;
    if (now == SHOWN_TEST) {
        buzzer_say(&panel->buzzer, SOUND_TEST);
    } else if (now == SHOWN_OPACITY && panel->since_beep >= BEEP_APART_MS) {
        buzzer_say(&panel->buzzer, SOUND_OPACITY);
        panel->since_beep = 0;
    } else if (is_verdict(before) && (now == SHOWN_NO_READING || now == SHOWN_NO_LINK)) {
        buzzer_say(&panel->buzzer, SOUND_VERDICT_ENDED);
    }
}

static void count_time(struct panel *panel)
{
    count_up(&panel->since_beep);
    count_up(&panel->since_status);
    if (panel->since_status >= STATUS_MS)
        panel->status_due = true;
    if (++panel->uptime_ms == 1000) {
        panel->uptime_ms = 0;
        count_up(&panel->uptime_s);
    }
}

void panel_tick(struct panel *panel, uint8_t closed, bool muted)
{
    panel->muted = muted;
    count_time(panel);
    buzzer_tick(&panel->buzzer);
    if (events_tick(&panel->events))
        buzzer_say(&panel->buzzer, SOUND_DROPPED);
    buttons_tick(&panel->buttons, closed, did, panel);
    const uint8_t before = panel->lamps.shown;
    lamps_tick(&panel->lamps);
    if (panel->lamps.shown != before)
        shown_changed(panel, before, panel->lamps.shown);
}

static void write_event(const struct panel *panel, const struct event *event, struct wire_frame *frame)
{
    frame->code = WIRE_EVENT;
    wire_add_u16(frame, panel->boot);
    wire_add_u8(frame, panel->events.number);
    wire_add_u8(frame, event->button);
    wire_add_u8(frame, event->kind);
    wire_add_u16(frame, event->age);
}

static void write_hello(const struct panel *panel, struct wire_frame *frame)
{
    frame->code = WIRE_HELLO;
    wire_add_u8(frame, WIRE_VERSION);
    wire_add_u8(frame, EVERYTHING);
    wire_add_u16(frame, panel->boot);
    wire_add_u8(frame, panel->reset_cause);
    wire_add_u8(frame, FIRMWARE_MAJOR);
    wire_add_u8(frame, FIRMWARE_MINOR);
}

static void write_status(const struct panel *panel, struct wire_frame *frame)
{
    const uint8_t muted = panel->muted ? FLAG_MUTED : 0;
    const uint8_t flags = panel->events.lost_told > 0 ? muted | FLAG_EVENTS_LOST : muted;
    frame->code = WIRE_STATUS;
    wire_add_u16(frame, panel->boot);
    wire_add_u16(frame, panel->uptime_s);
    wire_add_u16(frame, panel->analog.battery_mv);
    wire_add_u8(frame, panel->analog.dial);
    wire_add_u8(frame, panel->lamps.shown);
    wire_add_u32(frame, panel->lamps.reading);
    wire_add_u8(frame, panel->buttons.down);
    wire_add_u8(frame, flags);
    wire_add_u16(frame, panel->reader.refused);
}

uint8_t panel_say(struct panel *panel, uint8_t out[WIRE_LONGEST + 1])
{
    struct wire_frame frame = {.sequence = panel->sequence};
    const struct event *event = events_due(&panel->events);
    if (event) {
        write_event(panel, event, &frame);
        events_sent(&panel->events);
    } else if (panel->hello_due) {
        write_hello(panel, &frame);
        panel->hello_due = false;
    } else if (panel->status_due) {
        write_status(panel, &frame);
        panel->status_due = false;
        panel->since_status = 0;
    } else {
        return 0;
    }
    panel->sequence++;
    return wire_encode(&frame, out);
}

uint16_t panel_tone(const struct panel *panel)
{
    return buzzer_tone(&panel->buzzer, panel->muted || panel->quiet);
}

bool panel_linked(const struct panel *panel)
{
    return panel->lamps.shown != SHOWN_NO_LINK;
}
