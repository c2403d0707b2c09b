#include "events.h"

#include <stddef.h>
#include <string.h>

static void drop_first(struct events *events)
{
    events->count--;
    memmove(events->waiting, events->waiting + 1, events->count * sizeof events->waiting[0]);
    events->number++;
    events->sent = false;
}

bool events_add(struct events *events, uint8_t button, uint8_t kind)
{
    if (events->count == EVENTS_WAITING) {
        events->lost_told = EVENTS_LOST_MS;
        return false;
    }
    events->waiting[events->count++] = (struct event){.button = button, .kind = kind};
    return true;
}

bool events_tick(struct events *events)
{
    if (events->since_sent < EVENT_REPEAT_MS)
        events->since_sent++;
    if (events->lost_told > 0)
        events->lost_told--;
    for (uint8_t i = 0; i < events->count; i++)
        events->waiting[i].age++;
    bool dropped = false;
    while (events->count > 0 && events->waiting[0].age > EVENT_OLD_MS) {
        drop_first(events);
        dropped = true;
    }
    return dropped;
}

const struct event *events_due(const struct events *events)
{
    const bool due = events->count > 0 && (!events->sent || events->since_sent >= EVENT_REPEAT_MS);
    return due ? &events->waiting[0] : NULL;
}

void events_sent(struct events *events)
{
    events->sent = true;
    events->since_sent = 0;
}

uint8_t events_got(struct events *events, uint8_t number)
{
    if (events->count == 0 || !events->sent || events->number != number)
        return 0;
    const uint8_t kind = events->waiting[0].kind;
    drop_first(events);
    return kind;
}
