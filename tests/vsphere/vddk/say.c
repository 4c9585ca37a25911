/* Job: the log and the texts of errors.
 * Rule: what goes wrong is said through the caller's functions; nbdkit writes warnings as errors.
 */
#include <stdlib.h>
#include <string.h>

#include "standin.h"

static vix_log *log_to, *warn_to;

void say_to (vix_log *log, vix_log *warn)
{
  log_to = log;
  warn_to = warn;
}

void say (const char *format, ...)
{
  va_list values;
  va_start (values, format);
  if (log_to) log_to (format, values);
  va_end (values);
}

void complain (const char *format, ...)
{
  va_list values;
  va_start (values, format);
  if (warn_to) warn_to (format, values);
  va_end (values);
}

API char *VixDiskLib_GetErrorText (vix_error error, const char *locale)
{
  (void) locale;
  switch (error & 0xffff) {
  case VIX_OK: return strdup ("The operation was successful");
  case VIX_INVALID_ARG: return strdup ("One of the parameters was invalid");
  case VIX_FILE_NOT_FOUND: return strdup ("A file was not found");
  case VIX_NOT_SUPPORTED: return strdup ("The operation is not supported");
  case VIX_FILE_ACCESS: return strdup ("You do not have access rights to this file");
  case VIX_USER_PERMISSIONS: return strdup ("Insufficient permissions in the host operating system");
  case VIX_NO_SERVER: return strdup ("The specified server could not be contacted");
  case VIX_SERVER_REFUSED: return strdup ("The server refused connection");
  }
  return strdup ("Unknown error");
}

API void VixDiskLib_FreeErrorText (char *text) { free (text); }
