/* Time that only moves forward. */
#ifndef AIMO_BASE_CLOCK_H
#define AIMO_BASE_CLOCK_H

/* Seconds since some moment in the past. */
double aimo_clock_seconds(void);

#endif
