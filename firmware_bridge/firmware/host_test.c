/* The panel's logic, tested on this machine: all but board.c and main.c, which the simulator runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "panel.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition); \
            exit(1); \
        } \
    } while (0)

enum { FREEZE = 1, NEXT, BACK, RECORD, CONFIRM, BOOT = 0x0102 };

static struct panel panel;
static uint8_t closed; /* contacts */
static bool muted;

static uint8_t bit(uint8_t button)
{
    return (uint8_t)(1 << (button - 1));
}

static void wait_ms(unsigned milliseconds)
{
    for (unsigned i = 0; i < milliseconds; i++)
        panel_tick(&panel, closed, muted);
}

static void hear(const struct wire_frame *frame)
{
    uint8_t bytes[WIRE_LONGEST + 1];
    const uint8_t length = wire_encode(frame, bytes);
    for (uint8_t i = 0; i < length; i++)
        panel_hear(&panel, bytes[i]);
}

static void show_version(uint8_t asked, uint32_t reading, uint16_t age, uint8_t quiet, uint8_t version)
{
    struct wire_frame frame = {.code = WIRE_SHOW};
    wire_add_u8(&frame, asked);
    wire_add_u32(&frame, reading);
    wire_add_u16(&frame, age);
    wire_add_u8(&frame, quiet);
    wire_add_u8(&frame, version);
    hear(&frame);
}

static void show(uint8_t asked, uint32_t reading, uint16_t age)
{
    show_version(asked, reading, age, 0, WIRE_VERSION);
    wait_ms(1);
}

static void got(uint16_t boot, uint8_t number)
{
    struct wire_frame frame = {.code = WIRE_GOT};
    wire_add_u16(&frame, boot);
    wire_add_u8(&frame, number);
    hear(&frame);
}

/* The next frame that the panel sends; code 0 when it has nothing to say. */
static struct wire_frame said(void)
{
    uint8_t bytes[WIRE_LONGEST + 1];
    struct wire_reader reader = {0};
    struct wire_frame frame = {0};
    const uint8_t length = panel_say(&panel, bytes);
    for (uint8_t i = 0; i < length; i++)
        CHECK(wire_feed(&reader, bytes[i], &frame) == (i == length - 1));
    return frame;
}

/* The next event that the panel sends, statuses passed over; code 0 for none. */
static struct wire_frame said_event(void)
{
    struct wire_frame frame = said();
    while (frame.code != 0 && frame.code != WIRE_EVENT)
        frame = said();
    return frame;
}

/* Begins anew, with all buttons open, and with hello said. */
static void start(void)
{
    closed = 0;
    muted = false;
    panel_start(&panel, BOOT, 1);
    CHECK(said().code == WIRE_HELLO);
    wait_ms(2 * DEBOUNCE_MS);
}

static bool event_is(struct wire_frame frame, uint8_t number, uint8_t button, enum kind kind)
{
    return frame.code == WIRE_EVENT && wire_u16(frame.payload) == BOOT && frame.payload[2] == number &&
           frame.payload[3] == button && frame.payload[4] == kind;
}

static void frames_go_there_and_back(void)
{
    const struct wire_frame sent = {.code = WIRE_GOT, .sequence = 0, .length = 3, .payload = {0, 7, 0}};
    uint8_t bytes[WIRE_LONGEST + 1];
    struct wire_reader reader = {0};
    struct wire_frame found = {0};
    const uint8_t length = wire_encode(&sent, bytes);
    CHECK(length == 3 + 6);
    for (uint8_t i = 0; i < length; i++) {
        CHECK((bytes[i] == 0) == (i == length - 1));
        CHECK(wire_feed(&reader, bytes[i], &found) == (i == length - 1));
    }
    CHECK(found.code == sent.code && found.sequence == sent.sequence && found.length == sent.length);
    CHECK(memcmp(found.payload, sent.payload, sent.length) == 0);
    CHECK(reader.refused == 0);
}

static void a_spoiled_or_overlong_piece_is_refused_once_and_the_next_frame_is_good(void)
{
    const struct wire_frame ask = {.code = WIRE_ASK, .length = 1, .payload = {WIRE_VERSION}};
    uint8_t bytes[WIRE_LONGEST + 1];
    struct wire_reader reader = {0};
    struct wire_frame found;
    const uint8_t length = wire_encode(&ask, bytes);
    for (unsigned i = 0; i < 3 * WIRE_LONGEST; i++)
        CHECK(!wire_feed(&reader, 0xAA, &found));
    CHECK(!wire_feed(&reader, 0, &found) && reader.refused == 1);
    wire_spoil(&reader);
    for (uint8_t i = 0; i < length; i++)
        CHECK(!wire_feed(&reader, bytes[i], &found));
    CHECK(reader.refused == 2);
    CHECK(!wire_feed(&reader, 0, &found) && reader.refused == 2);
    for (uint8_t i = 0; i < length; i++)
        CHECK(wire_feed(&reader, bytes[i], &found) == (i == length - 1));
    reader.refused = UINT16_MAX;
    wire_feed(&reader, 1, &found);
    wire_feed(&reader, 0, &found);
    CHECK(reader.refused == UINT16_MAX);
}

static void nothing_is_shown_before_a_show(void)
{
    start();
    wait_ms(70000);
    CHECK(panel.lamps.shown == SHOWN_NO_LINK && !panel_linked(&panel));
    show_version(SHOWN_NORMAL, 1, 40, 0, WIRE_VERSION + 1);
    wait_ms(1);
    CHECK(panel.lamps.shown == SHOWN_NO_LINK);
    show(SHOWN_NORMAL, 1, 40);
    CHECK(panel.lamps.shown == SHOWN_NORMAL && panel_linked(&panel));
}

static void a_silent_link_is_told(void)
{
    start();
    show(SHOWN_OPACITY, 1, 0);
    wait_ms(LINK_SILENT_MS - 2);
    CHECK(panel.lamps.shown == SHOWN_OPACITY);
    wait_ms(1);
    CHECK(panel.lamps.shown == SHOWN_NO_LINK);
    show(SHOWN_OPACITY, 2, 0);
    CHECK(panel.lamps.shown == SHOWN_OPACITY);
}

static void an_old_reading_lights_no_verdict_on_a_live_link(void)
{
    start();
    show(SHOWN_NORMAL, 1, 1500);
    CHECK(panel.lamps.shown == SHOWN_NORMAL);
    wait_ms(498);
    CHECK(panel.lamps.shown == SHOWN_NORMAL);
    wait_ms(1);
    CHECK(panel.lamps.shown == SHOWN_NO_READING);
    show(SHOWN_NORMAL, 2, UINT16_MAX);
    CHECK(panel.lamps.shown == SHOWN_NO_READING);
}

static void a_stuck_number_lights_no_verdict_whatever_age_is_claimed(void)
{
    start();
    for (unsigned ms = 0; ms < 2500; ms += 100) {
        show(SHOWN_NORMAL, 7, 0);
        CHECK(panel.lamps.shown == (ms < READING_OLD_MS ? SHOWN_NORMAL : SHOWN_NO_READING));
        wait_ms(99);
    }
    show(SHOWN_NORMAL, 8, 0);
    CHECK(panel.lamps.shown == SHOWN_NORMAL);
    wait_ms(LINK_SILENT_MS);
    show(SHOWN_NORMAL, 8, 0);
    CHECK(panel.lamps.shown == SHOWN_NORMAL);
    wait_ms(READING_OLD_MS - LINK_SILENT_MS);
    show(SHOWN_NORMAL, 8, 0);
    CHECK(panel.lamps.shown == SHOWN_NO_READING);
}

static void the_test_lights_all_lamps_whatever_the_reading(void)
{
    start();
    show(SHOWN_TEST, 0, UINT16_MAX);
    CHECK(panel.lamps.shown == SHOWN_TEST && lamps_lit(&panel.lamps) == 7);
    wait_ms(LINK_SILENT_MS);
    CHECK(panel.lamps.shown == SHOWN_NO_LINK);
}

static void patterns_begin_lit_and_take_a_second(void)
{
    start();
    show(SHOWN_OPACITY, 1, 0);
    for (unsigned ms = 0; ms < 1000; ms++) {
        CHECK(panel.lamps.shown == SHOWN_OPACITY);
        CHECK(lamps_lit(&panel.lamps) == (ms * 2 / 125 % 4 < 2 ? LAMP_OPACITY : 0));
        if (ms % 100 == 99)
            show(SHOWN_OPACITY, ms, 0);
        else
            wait_ms(1);
    }
    CHECK(lamps_lit(&panel.lamps) == LAMP_OPACITY);
    wait_ms(200);
    CHECK(lamps_lit(&panel.lamps) == 0);
    show(SHOWN_TEST, 5000, 0);
    CHECK(lamps_lit(&panel.lamps) == (LAMP_NORMAL | LAMP_OPACITY | LAMP_NO_READING));
}

static void every_state_begins_lit_and_no_two_look_alike_without_colour(void)
{
    uint16_t looks[SHOWN_ASKED] = {0};
    for (uint8_t shown = 0; shown < SHOWN_ASKED; shown++) {
        struct lamps lamps = {.shown = shown};
        CHECK(lamps_lit(&lamps) != 0);
        for (lamps.step = 0; lamps.step < 16; lamps.step++)
            looks[shown] |= (uint16_t)((lamps_lit(&lamps) != 0) << lamps.step);
        for (uint8_t other = 0; other < shown; other++)
            CHECK(looks[other] != looks[shown]);
    }
}

static void press_for(uint8_t button, unsigned milliseconds)
{
    closed |= bit(button);
    wait_ms(milliseconds);
    closed &= (uint8_t)~bit(button);
    wait_ms(DEBOUNCE_MS);
}

static void a_short_press_is_press_and_click(void)
{
    start();
    press_for(NEXT, 100);
    CHECK(event_is(said_event(), 0, NEXT, KIND_PRESS));
    got(BOOT, 0);
    CHECK(event_is(said_event(), 1, NEXT, KIND_CLICK));
    got(BOOT, 1);
    CHECK(said_event().code == 0);
}

static void a_long_press_is_press_and_long(void)
{
    start();
    press_for(CONFIRM, LONG_MS + 50);
    CHECK(event_is(said_event(), 0, CONFIRM, KIND_PRESS));
    got(BOOT, 0);
    CHECK(event_is(said_event(), 1, CONFIRM, KIND_LONG));
    got(BOOT, 1);
    wait_ms(100);
    CHECK(said_event().code == 0);
    press_for(CONFIRM, 100);
    CHECK(event_is(said_event(), 2, CONFIRM, KIND_PRESS));
    got(BOOT, 2);
    CHECK(event_is(said_event(), 3, CONFIRM, KIND_CLICK));
}

static void a_bouncing_contact_is_one_press(void)
{
    start();
    for (unsigned i = 0; i < 40; i++) {
        closed ^= bit(FREEZE);
        wait_ms(1 + i % (DEBOUNCE_MS - 1));
    }
    CHECK(said_event().code == 0);
    closed |= bit(FREEZE);
    wait_ms(DEBOUNCE_MS - 1);
    CHECK(said_event().code == 0);
    wait_ms(1);
    CHECK(event_is(said_event(), 0, FREEZE, KIND_PRESS));
}

static void a_button_down_at_the_start_does_nothing_until_let_go(void)
{
    start();
    closed = bit(RECORD);
    panel_start(&panel, BOOT, 1);
    wait_ms(1000);
    CHECK(said_event().code == 0 && panel.buttons.down == bit(RECORD));
    closed = 0;
    wait_ms(DEBOUNCE_MS);
    CHECK(said_event().code == 0 && panel.buttons.down == 0);
    closed = bit(RECORD);
    wait_ms(DEBOUNCE_MS);
    CHECK(event_is(said_event(), 0, RECORD, KIND_PRESS));
}

static void two_buttons_at_once_are_told_apart(void)
{
    start();
    closed = bit(FREEZE) | bit(CONFIRM);
    wait_ms(DEBOUNCE_MS);
    CHECK(event_is(said_event(), 0, FREEZE, KIND_PRESS));
    got(BOOT, 0);
    CHECK(event_is(said_event(), 1, CONFIRM, KIND_PRESS));
}

static void an_event_is_repeated_until_its_own_answer(void)
{
    start();
    closed = bit(BACK);
    wait_ms(DEBOUNCE_MS);
    CHECK(event_is(said_event(), 0, BACK, KIND_PRESS));
    CHECK(said_event().code == 0);
    for (uint16_t repeats = 1; repeats < 5; repeats++) {
        wait_ms(EVENT_REPEAT_MS - 1);
        CHECK(said_event().code == 0);
        wait_ms(1);
        const struct wire_frame again = said_event();
        CHECK(event_is(again, 0, BACK, KIND_PRESS));
        CHECK(wire_u16(again.payload + 5) == repeats * EVENT_REPEAT_MS);
        got(BOOT, 1);
        got(BOOT + 1, 0);
    }
    got(BOOT, 0);
    got(BOOT, 0);
    wait_ms(EVENT_REPEAT_MS);
    CHECK(said_event().code == 0);
}

static void an_event_nobody_answers_is_dropped_and_told(void)
{
    start();
    press_for(FREEZE, 50);
    CHECK(said_event().code == WIRE_EVENT);
    wait_ms(EVENT_OLD_MS - 50);
    CHECK(event_is(said_event(), 0, FREEZE, KIND_PRESS));
    wait_ms(60);
    CHECK(panel.buzzer.sound == SOUND_DROPPED);
    CHECK(said_event().code == 0);
    press_for(NEXT, 50);
    CHECK(event_is(said_event(), 2, NEXT, KIND_PRESS));
}

static void nine_waiting_are_too_many_and_that_is_told(void)
{
    start();
    for (unsigned i = 0; i < 5; i++)
        press_for(NEXT, 20);
    CHECK(panel.events.count == EVENTS_WAITING && panel.buzzer.sound == SOUND_DROPPED);
    for (uint8_t number = 0; number < EVENTS_WAITING; number++) {
        CHECK(event_is(said_event(), number, NEXT, number % 2 ? KIND_CLICK : KIND_PRESS));
        got(BOOT, number);
    }
    wait_ms(250);
    const struct wire_frame status = said();
    CHECK(status.code == WIRE_STATUS && status.payload[13] == 2);
    wait_ms(EVENTS_LOST_MS);
    const struct wire_frame later = said();
    CHECK(later.code == WIRE_STATUS && later.payload[13] == 0);
}

static void status_comes_four_times_a_second_and_at_once_on_a_change(void)
{
    start();
    said();
    unsigned statuses = 0;
    for (unsigned ms = 0; ms < 1000; ms++) {
        wait_ms(1);
        statuses += said().code == WIRE_STATUS;
    }
    CHECK(statuses == 4);
    show(SHOWN_NORMAL, 70000, 0);
    const struct wire_frame status = said();
    CHECK(status.code == WIRE_STATUS && wire_u16(status.payload) == BOOT && wire_u16(status.payload + 2) == 1);
    CHECK(status.payload[7] == SHOWN_NORMAL && wire_u32(status.payload + 8) == 70000);
}

static void hello_answers_every_ask_of_any_version(void)
{
    start();
    const struct wire_frame ask = {.code = WIRE_ASK, .length = 1, .payload = {WIRE_VERSION + 1}};
    hear(&ask);
    const struct wire_frame hello = said();
    CHECK(hello.code == WIRE_HELLO && hello.payload[0] == WIRE_VERSION && wire_u16(hello.payload + 2) == BOOT);
    CHECK(hello.payload[1] == 63 && hello.payload[4] == 1);
    CHECK(said().code == 0);
}

static void every_frame_has_the_next_sequence(void)
{
    start();
    uint8_t before = panel.sequence;
    for (unsigned i = 0; i < 300; i++) {
        wait_ms(250);
        const struct wire_frame frame = said();
        CHECK(frame.code == WIRE_STATUS && frame.sequence == before);
        before++;
    }
}

static void long_times_stand_still(void)
{
    start();
    show(SHOWN_NORMAL, 1, 0);
    for (unsigned minutes = 0; minutes < 66000 / 60; minutes++)
        wait_ms(60000);
    CHECK(panel.uptime_s == UINT16_MAX && panel.lamps.shown == SHOWN_NO_LINK);
}

/* How many beeps there are within some time, and of what tone the last was. */
static unsigned beeps(unsigned milliseconds, uint16_t *tone)
{
    unsigned count = 0;
    uint16_t before = 0;
    for (unsigned ms = 0; ms < milliseconds; ms++) {
        const uint16_t now = panel_tone(&panel);
        count += now != 0 && before == 0;
        if (now != 0)
            *tone = now;
        before = now;
        wait_ms(1);
    }
    return count;
}

static void opacity_beeps_at_most_every_five_seconds(void)
{
    uint16_t tone = 0;
    uint32_t reading = 1;
    start();
    show(SHOWN_OPACITY, reading++, 0);
    CHECK(beeps(500, &tone) == 1);
    show(SHOWN_NORMAL, reading++, 0);
    show(SHOWN_OPACITY, reading++, 0);
    CHECK(beeps(500, &tone) == 0);
    for (unsigned i = 0; i < 45; i++) {
        show(SHOWN_NORMAL, reading++, 0);
        wait_ms(99);
    }
    show(SHOWN_OPACITY, reading++, 0);
    CHECK(beeps(500, &tone) == 1);
}

static void a_verdict_that_ends_beeps_twice(void)
{
    uint16_t tone = 0;
    start();
    show(SHOWN_NORMAL, 1, 0);
    CHECK(beeps(900, &tone) == 0);
    show(SHOWN_NO_READING, 2, 0);
    CHECK(beeps(900, &tone) == 2);
    show(SHOWN_CANNOT_TELL, 3, 0);
    wait_ms(LINK_SILENT_MS);
    CHECK(beeps(900, &tone) == 2);
    show(SHOWN_NO_READING, 4, 0);
    CHECK(beeps(900, &tone) == 0);
}

static void mute_and_quiet_silence_all_but_the_test(void)
{
    uint16_t tone = 0;
    start();
    muted = true;
    show(SHOWN_OPACITY, 1, 0);
    CHECK(beeps(900, &tone) == 0);
    show(SHOWN_TEST, 1, 0);
    CHECK(beeps(900, &tone) == 1);
    muted = false;
    show_version(SHOWN_NO_READING, 2, 0, 1, WIRE_VERSION);
    wait_ms(5000);
    show_version(SHOWN_OPACITY, 3, 0, 1, WIRE_VERSION);
    CHECK(beeps(900, &tone) == 0);
}

static void an_event_got_ticks_and_a_dropped_one_sounds_low(void)
{
    uint16_t tick = 0, low = 0;
    start();
    closed = bit(FREEZE);
    wait_ms(DEBOUNCE_MS);
    said_event();
    got(BOOT, 0);
    CHECK(beeps(200, &tick) == 1);
    got(BOOT, 0);
    CHECK(beeps(200, &tick) == 0);
    closed = 0;
    wait_ms(DEBOUNCE_MS);
    CHECK(event_is(said_event(), 1, FREEZE, KIND_CLICK));
    got(BOOT, 1);
    CHECK(beeps(200, &tick) == 0);
    closed = bit(FREEZE);
    wait_ms(DEBOUNCE_MS);
    said_event();
    got(BOOT, 2);
    wait_ms(LONG_MS);
    CHECK(event_is(said_event(), 3, FREEZE, KIND_LONG));
    got(BOOT, 3);
    CHECK(beeps(200, &tick) == 1);
    closed = 0;
    wait_ms(DEBOUNCE_MS);
    press_for(FREEZE, 20);
    CHECK(beeps(3000, &low) == 1);
    CHECK(low < tick / 2);
}

static void a_tick_cuts_no_beep_short(void)
{
    start();
    closed = bit(FREEZE);
    wait_ms(DEBOUNCE_MS);
    said_event();
    show(SHOWN_OPACITY, 1, 0);
    got(BOOT, 0);
    CHECK(panel.buzzer.sound == SOUND_OPACITY);
}

static void measure(struct analog *analog, uint16_t dial, uint16_t battery)
{
    for (unsigned i = 0; i < 200; i++)
        analog_add(analog, analog->channel == CHANNEL_DIAL ? dial : battery);
}

static void dial_and_battery_are_measured_in_turn(void)
{
    struct analog analog;
    analog_start(&analog);
    CHECK(analog_brightness(&analog) == UINT8_MAX && analog.battery_mv == 0);
    measure(&analog, 512, 430);
    CHECK(analog.dial == 128 && analog_brightness(&analog) == 128);
    CHECK(analog.battery_mv > 7350 && analog.battery_mv < 7450);
    measure(&analog, 0, 57);
    CHECK(analog.dial == 0 && analog_brightness(&analog) > 0);
    CHECK(analog.battery_mv == 0);
    measure(&analog, 1023, 1023);
    CHECK(analog.dial == UINT8_MAX && analog.battery_mv > 17500);
}

int main(void)
{
    frames_go_there_and_back();
    a_spoiled_or_overlong_piece_is_refused_once_and_the_next_frame_is_good();
    nothing_is_shown_before_a_show();
    a_silent_link_is_told();
    an_old_reading_lights_no_verdict_on_a_live_link();
    a_stuck_number_lights_no_verdict_whatever_age_is_claimed();
    the_test_lights_all_lamps_whatever_the_reading();
    patterns_begin_lit_and_take_a_second();
    every_state_begins_lit_and_no_two_look_alike_without_colour();
    a_short_press_is_press_and_click();
    a_long_press_is_press_and_long();
    a_bouncing_contact_is_one_press();
    a_button_down_at_the_start_does_nothing_until_let_go();
    two_buttons_at_once_are_told_apart();
    an_event_is_repeated_until_its_own_answer();
    an_event_nobody_answers_is_dropped_and_told();
    nine_waiting_are_too_many_and_that_is_told();
    status_comes_four_times_a_second_and_at_once_on_a_change();
    hello_answers_every_ask_of_any_version();
    every_frame_has_the_next_sequence();
    long_times_stand_still();
    opacity_beeps_at_most_every_five_seconds();
    a_verdict_that_ends_beeps_twice();
    mute_and_quiet_silence_all_but_the_test();
    an_event_got_ticks_and_a_dropped_one_sounds_low();
    a_tick_cuts_no_beep_short();
    dial_and_battery_are_measured_in_turn();
    puts("the panel's logic: all as it should be");
    return 0;
}
