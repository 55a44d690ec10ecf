"""`looper bench RECIPE`: what a step of the user's own recipe costs, in each mode, by hand and in Keras' `fit`.

    options -> run -> worker processes, one for each side: sides/raw loop, looper's fit, Keras' fit
            -> rounds of bursts, one of each side after the other
            -> results (medians, intervals, ratios) -> table, JSON, chart

Each side is a process of its own, so that its peak memory and the time to its first step are its own.
"""
