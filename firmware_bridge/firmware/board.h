/* The ATmega328P's registers: an Arduino Nano or Uno at 16 MHz, wired as docs/panel.md draws it. */
#ifndef BOARD_H
#define BOARD_H

#include <stdbool.h>
#include <stdint.h>

#include "analog.h"

enum { BOARD_NOTHING = -1, BOARD_DAMAGE = 256 };

/* Sets up pins, timers, converter, serial line and the watchdog, and begins. */
void board_start(void);

/* Why it started: bits of MCUSR. */
uint8_t board_reset_cause(void);

/* Counts the starts in the EEPROM: another number at every one. */
uint16_t board_count_boot(void);

/* The next received byte, BOARD_DAMAGE where some were lost or came false, or BOARD_NOTHING. */
int16_t board_receive(void);

/* True once for every millisecond that has passed. */
bool board_tick(void);

/* Whether the longest frame can be sent. */
bool board_can_send(void);
void board_send(const uint8_t *bytes, uint8_t length);

/* The set of buttons whose contacts are closed, bit n-1 for button n. */
uint8_t board_buttons(void);
bool board_muted(void);

/* The last sample of the channel; begins the next, of the channel next. */
uint16_t board_sample(enum channel next);

/* lit: bits of enum lamp. brightness: of 255. tone: Hz, 0 for silence, else 245 or more. */
void board_show(uint8_t lit, uint8_t brightness, uint16_t tone, bool linked);

/* Must be called every 125 ms, or the panel starts anew: at once, or where interrupts are off, after as long
   again. */
void board_alive(void);

/* Sleeps until an interrupt, unless there is something to do. */
void board_sleep(void);

#endif
