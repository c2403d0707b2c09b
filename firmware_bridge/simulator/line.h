/* The serial line to the host: a pseudo-terminal that behaves as an Arduino's USB serial port does. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct line_counts {
    unsigned long to_part, to_host, flipped, lost, garbled;
};

/* Make the port; `link` becomes a symbolic link to it. False, with a line on standard error, if not. */
bool line_plug(const char *link);
/* The port is gone, with all that it held. */
void line_unplug(void);

/* To wait on for bytes, or -1: nobody has the port open, or there is no room for more. */
int line_descriptor(void);
/* To wait on for openings and closings, or -1 while unplugged. */
int line_watcher(void);
/* Heed the host: it opens, closes, writes. True where it has raised DTR, which resets an Arduino: when it
   opens the port first, and after a close that was to hang up (HUPCL). */
bool line_attend(void);

/* The rate that the host has set. */
uint32_t line_baud(void);
bool line_waiting(void);
/* The host's next byte, one call per byte's time; `baud` is the part's rate. False where none comes. */
bool line_next(uint8_t *byte, uint32_t baud);
/* A byte from the part; it leaves with line_flush. */
void line_send(uint8_t byte, uint32_t baud);
void line_flush(void);

/* Of all bytes, both ways, these shares have one bit flipped or are lost. */
void line_noise(double flipped, double lost, uint64_t seed);
struct line_counts line_counts(void);
