#include "board.h"
#include "panel.h"

static struct panel panel;

static void hear(void)
{
    for (int16_t heard = board_receive(); heard != BOARD_NOTHING; heard = board_receive()) {
        if (heard == BOARD_DAMAGE)
            wire_spoil(&panel.reader);
        else
            panel_hear(&panel, (uint8_t)heard);
    }
}

static void tick(void)
{
    while (board_tick()) {
        panel_tick(&panel, board_buttons(), board_muted());
        analog_add(&panel.analog, board_sample((enum channel)panel.analog.channel));
        board_show(lamps_lit(&panel.lamps), analog_brightness(&panel.analog), panel_tone(&panel),
                   panel_linked(&panel));
        board_alive();
    }
}

static void say(void)
{
    uint8_t bytes[WIRE_LONGEST + 1];
    while (board_can_send()) {
        const uint8_t length = panel_say(&panel, bytes);
        if (length == 0)
            return;
        board_send(bytes, length);
    }
}

int main(void)
{
    board_start();
    panel_start(&panel, board_count_boot(), board_reset_cause());
    board_send((const uint8_t[]){0}, 1); /* ends whatever was on the line before */
    for (;;) {
        hear();
        tick();
        say();
        board_sleep();
    }
}
