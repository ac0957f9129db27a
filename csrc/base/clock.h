/* Monotonic time. */
#ifndef AIMO_BASE_CLOCK_H
#define AIMO_BASE_CLOCK_H

/* Seconds since an arbitrary fixed moment. */
double aimo_clock_seconds(void);

#endif
