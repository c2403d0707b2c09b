#include "lamps.h"

#include "timing.h"

enum { STEP = 125 /* half milliseconds: a step is 1/16 second */ };

/* In the order of enum lamp. */
static const uint16_t PATTERNS[][3] = {
#define SHOWN(number, name, normal, opacity, no_reading) [number] = {(normal), (opacity), (no_reading)},
#include "lamps.def"
};

static bool holds_LINK_SILENT(const struct lamps *lamps)
{
    return lamps->silence >= LINK_SILENT_MS;
}

static bool holds_ASKED_TEST(const struct lamps *lamps)
{
    return lamps->asked == SHOWN_TEST;
}

static bool holds_READING_OLD(const struct lamps *lamps)
{
    return lamps->age >= READING_OLD_MS;
}

static bool holds_NUMBER_STUCK(const struct lamps *lamps)
{
    return lamps->same >= READING_OLD_MS;
}

static bool holds_OTHERWISE(const struct lamps *lamps)
{
    (void)lamps;
    return true;
}

static uint8_t decide(const struct lamps *lamps)
{
#define RULE(condition, then) \
    if (holds_##condition(lamps)) \
        return SHOWN_##then == SHOWN_ASKED ? lamps->asked : (uint8_t)SHOWN_##then;
#include "lamps.def"
    return SHOWN_NO_LINK; /* never: the last rule always holds */
}

void lamps_start(struct lamps *lamps)
{
    *lamps = (struct lamps){
        .silence = LONG_AGO,
        .age = LONG_AGO,
        .same = LONG_AGO,
        .shown = SHOWN_NO_LINK,
    };
}

void lamps_heard(struct lamps *lamps, uint8_t asked, uint32_t reading, uint16_t age)
{
    if (!lamps->heard || reading != lamps->reading)
        lamps->same = 0;
    lamps->heard = true;
    lamps->asked = asked;
    lamps->reading = reading;
    lamps->age = age;
    lamps->silence = 0;
}

void lamps_tick(struct lamps *lamps)
{
    count_up(&lamps->silence);
    count_up(&lamps->age);
    count_up(&lamps->same);
    lamps->within = (uint8_t)(lamps->within + 2);
    if (lamps->within >= STEP) {
        lamps->within = (uint8_t)(lamps->within - STEP);
        lamps->step = (uint8_t)((lamps->step + 1) % 16);
    }
    const uint8_t shown = decide(lamps);
    if (shown != lamps->shown) {
        lamps->shown = shown;
        lamps->step = 0;
        lamps->within = 0;
    }
}

uint8_t lamps_lit(const struct lamps *lamps)
{
    const uint16_t now = 0x8000 >> lamps->step;
    uint8_t lit = 0;
    for (uint8_t lamp = 0; lamp < 3; lamp++)
        if (PATTERNS[lamps->shown][lamp] & now)
            lit |= (uint8_t)(1 << lamp);
    return lit;
}

bool is_verdict(uint8_t shown)
{
    return shown == SHOWN_NORMAL || shown == SHOWN_OPACITY || shown == SHOWN_CANNOT_TELL;
}
