"""Many exams at once: which is urgent, what changed in a patient, how reading goes over days and sites."""
