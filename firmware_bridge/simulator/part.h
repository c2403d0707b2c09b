/* The microcontroller: an ATmega328P at 16 MHz in simavr, seen from its pins. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define CYCLES_PER_SECOND 16000000ULL
#define PINS 14

/* Called by part_run_until, at the cycle that is given. */
struct part_hooks {
    void (*pin)(int pin, bool level, uint64_t cycle);
    void (*sent)(uint8_t byte, uint32_t baud);
};

/* Make the part and write its flash: an .elf, or an Intel .hex, at whose lowest address the part then starts
   (so that a boot loader is one). False, with a line on standard error, where that cannot be done. */
bool part_load(const char *firmware, struct part_hooks hooks);

/* As power does it: what the RAM holds is anything. */
void part_power_on(uint64_t cycle);
/* All pins dark; nothing runs until the power comes back. */
void part_power_off(uint64_t cycle);
/* As the reset pin does it: the RAM stays. */
void part_reset(void);
/* The program hangs until the watchdog or a reset ends that. interrupts: it serves them meanwhile, as an endless
   loop does; else they are off. */
void part_hang(bool interrupts);

/* Cycles since the part was made. */
uint64_t part_cycle(void);
void part_run_until(uint64_t cycle);

/* A byte has arrived at the receiver. The part holds three (datasheet 19.7: two and the shift register) and
   loses what comes then; false where it did. */
bool part_receive(uint8_t byte);
/* As its UART is set up now. */
uint32_t part_baud(void);

/* Pins by Arduino's numbers, 0 to 13. To ground, or left open to whatever pull-up the part has on. */
void part_ground(int pin, bool grounded);
/* What the pin is at; 1 while a timer drives it, as for PWM and tones. */
bool part_level(int pin);
/* Voltage at A0 to A7. */
void part_analog(int channel, uint32_t millivolts);
/* A byte of the data space: registers and RAM. */
uint8_t part_peek(uint16_t address);
