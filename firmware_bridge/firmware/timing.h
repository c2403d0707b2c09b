/* Times are counted up by one a millisecond and stand still at their largest, so that nothing that was long
   ago ever becomes recent again. */
#ifndef TIMING_H
#define TIMING_H

#include <stdint.h>

enum { LONG_AGO = UINT16_MAX };

static inline void count_up(uint16_t *time)
{
    if (*time != LONG_AGO)
        ++*time;
}

#endif
