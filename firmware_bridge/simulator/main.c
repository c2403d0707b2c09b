/* The panel without the panel: the real firmware in a simulated microcontroller, paced to the clock.

   simulated_panel FIRMWARE PORT
   Standard input takes one command a line and is answered in one line, "ok ..." or "error ..."; between them
   come "pin NUMBER LEVEL NANOSECONDS" (of CLOCK_MONOTONIC). It ends when standard input does. */
#include "line.h"
#include "part.h"

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NANOSECONDS 1000000000ULL
/* The host is heeded this often: what it does is noticed no later. */
#define LONGEST_SLICE 1000000L
/* Where the simulation is late it runs this far before it heeds anything else. */
#define LONGEST_RUN (CYCLES_PER_SECOND / 50)

static FILE *answers;
static const char *port;
static bool powered;
static uint64_t started; /* the moment of cycle 0 */
static uint64_t late;    /* cycles, the most since it was asked for */
static uint64_t byte_due;
static bool byte_coming;
static unsigned long overrun;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * NANOSECONDS + (uint64_t)time.tv_nsec;
}

static uint64_t cycles_at(uint64_t moment) {
    return (moment - started) * (CYCLES_PER_SECOND / 1000000) / 1000;
}

static void pin_changed(int pin, bool level, uint64_t cycle) {
    uint64_t moment = started + cycle * 1000 / (CYCLES_PER_SECOND / 1000000);
    fprintf(answers, "pin %d %d %" PRIu64 "\n", pin, level, moment);
}

static void receive_byte(void) {
    uint8_t byte;
    byte_coming = false;
    if (line_next(&byte, part_baud()) && !part_receive(byte))
        overrun++;
}

static void run_until(uint64_t cycle) {
    while (part_cycle() < cycle) {
        if (!byte_coming && line_waiting()) {
            byte_coming = true;
            byte_due = part_cycle() + 10 * CYCLES_PER_SECOND / line_baud();
        }
        part_run_until(byte_coming && byte_due < cycle ? byte_due : cycle);
        if (byte_coming && byte_due <= part_cycle())
            receive_byte();
    }
}

static const char *unplug(void) {
    powered = false;
    line_unplug();
    part_power_off(cycles_at(now()));
    return "ok";
}

static const char *plug(void) {
    if (powered)
        return "error it is plugged in";
    if (!line_plug(port))
        return "error no port";
    part_power_on(cycles_at(now()));
    powered = true;
    byte_coming = false;
    return "ok";
}

static const char *obey(const char *command) {
    static char answer[160];
    int number, value;
    double flipped, lost;
    uint64_t seed;
    if (sscanf(command, "ground %d %d", &number, &value) == 2 && number >= 0 && number < PINS) {
        part_ground(number, value);
        return "ok";
    }
    if (sscanf(command, "analog %d %d", &number, &value) == 2 && number >= 0 && number < 8 && value >= 0) {
        part_analog(number, (uint32_t)value);
        return "ok";
    }
    if (sscanf(command, "noise %lf %lf %" SCNu64, &flipped, &lost, &seed) == 3) {
        line_noise(flipped, lost, seed);
        return "ok";
    }
    if (sscanf(command, "level %d", &number) == 1 && number >= 0 && number < PINS) {
        snprintf(answer, sizeof answer, "ok %d", part_level(number));
        return answer;
    }
    if (sscanf(command, "peek %d", &number) == 1 && number >= 0) {
        snprintf(answer, sizeof answer, "ok %d", part_peek((uint16_t)number));
        return answer;
    }
    if (strcmp(command, "counts") == 0) {
        struct line_counts counts = line_counts();
        snprintf(answer, sizeof answer, "ok %lu %lu %lu %lu %lu %lu", counts.to_part, counts.to_host,
                 counts.flipped, counts.lost, counts.garbled, overrun);
        return answer;
    }
    if (strcmp(command, "lag") == 0) {
        snprintf(answer, sizeof answer, "ok %" PRIu64, late);
        late = 0;
        return answer;
    }
    if (strcmp(command, "cycles") == 0) {
        snprintf(answer, sizeof answer, "ok %" PRIu64, part_cycle());
        return answer;
    }
    if (strcmp(command, "unplug") == 0)
        return unplug();
    if (strcmp(command, "plug") == 0)
        return plug();
    if (!powered)
        return "error it is unplugged";
    if (strcmp(command, "reset") == 0) {
        part_reset();
        return "ok";
    }
    if (sscanf(command, "hang %d", &value) == 1) {
        part_hang(value);
        return "ok";
    }
    return "error unknown command";
}

/* False at the end of standard input. */
static bool obey_all(void) {
    static char commands[4096];
    static size_t length;
    ssize_t got = read(STDIN_FILENO, commands + length, sizeof commands - 1 - length);
    if (got <= 0)
        return false;
    length += (size_t)got;
    commands[length] = '\0';
    char *line = commands;
    for (char *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = '\0';
        fprintf(answers, "%s\n", obey(line));
    }
    length -= (size_t)(line - commands);
    memmove(commands, line, length);
    return length < sizeof commands - 1;
}

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: simulated_panel FIRMWARE PORT\n");
        return 2;
    }
    /* simavr prints on standard output now and then. */
    answers = fdopen(dup(STDOUT_FILENO), "w");
    dup2(STDERR_FILENO, STDOUT_FILENO);
    signal(SIGPIPE, SIG_IGN);
    port = arguments[2];
    struct part_hooks hooks = {.pin = pin_changed, .sent = line_send};
    if (answers == NULL || !part_load(arguments[1], hooks))
        return 1;
    started = now();
    if (strcmp(plug(), "ok") != 0)
        return 1;
    fprintf(answers, "ok\n");
    bool behind = false;
    do {
        fflush(answers);
        struct pollfd waits[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                                 {.fd = line_descriptor(), .events = POLLIN},
                                 {.fd = line_watcher(), .events = POLLIN}};
        struct timespec slice = {.tv_nsec = behind ? 0 : LONGEST_SLICE};
        ppoll(waits, 3, &slice, NULL);
        if (powered) {
            uint64_t target = cycles_at(now()), cycle = part_cycle();
            uint64_t missing = target > cycle ? target - cycle : 0;
            late = missing > late ? missing : late;
            behind = missing > LONGEST_RUN;
            run_until(behind ? cycle + LONGEST_RUN : target);
            line_flush();
            if (line_attend())
                part_reset();
        }
        if (waits[0].revents && !obey_all())
            break;
    } while (!ferror(answers));
    line_unplug();
    return 0;
}
