package blobs

import (
	"context"
	"net/http"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	gcaws "gocloud.dev/aws"
	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"
)

// plain has the SDK send, and look for, no checksums but those that an operation
// needs: other services than Amazon's refuse the rest, or have none. Chunks have
// digests of their own.
var plain = map[string]string{"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}

// defaults sets those of values that q does not say.
func defaults(q url.Values, values map[string]string) {
	for name, value := range values {
		if q.Get(name) == "" {
			q.Set(name, value)
		}
	}
}

// openS3 opens a bucket of S3, or of a service that speaks it.
func openS3(ctx context.Context, u *url.URL) (*blob.Bucket, error) {
	at, q := *u, u.Query()
	q.Del(replaceParam)
	if q.Get("endpoint") != "" {
		defaults(q, plain)
		defaults(q, map[string]string{"use_path_style": "true"}) // few others have a host name for each bucket
	}
	at.RawQuery = q.Encode()
	return new(s3blob.URLOpener).OpenBucketURL(ctx, &at)
}

const googleEndpoint = "https://storage.googleapis.com"

// openGS opens a bucket of Google Cloud Storage by the interface that it shares
// with S3, with an HMAC key. Its own client would add 30 MB to every binary, and a
// minute to each build, for the same four requests.
func openGS(ctx context.Context, u *url.URL) (*blob.Bucket, error) {
	q := u.Query()
	defaults(q, plain)
	defaults(q, map[string]string{"endpoint": googleEndpoint, "region": "auto"})
	cfg, err := gcaws.V2ConfigFromURLParams(ctx, q)
	if err != nil {
		return nil, err
	}
	client := s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.UsePathStyle = true
		o.APIOptions = append(o.APIOptions, unsigned("Accept-Encoding"))
	})
	return s3blob.OpenBucket(ctx, client, u.Host, &s3blob.Options{RequestChecksumCalculation: cfg.RequestChecksumCalculation})
}

// unsigned keeps a header out of the requests' signatures. Google's front end
// changes Accept-Encoding on its way, and with it signed no signature is right.
func unsigned(header string) func(*middleware.Stack) error {
	type held struct{}
	away := middleware.FinalizeMiddlewareFunc("unsigned", func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
		if r, ok := in.Request.(*smithyhttp.Request); ok {
			ctx = middleware.WithStackValue(ctx, held{}, r.Header.Values(header))
			r.Header.Del(header)
		}
		return next.HandleFinalize(ctx, in)
	})
	back := middleware.FinalizeMiddlewareFunc("unsignedBack", func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
		values, _ := middleware.GetStackValue(ctx, held{}).([]string)
		if r, ok := in.Request.(*smithyhttp.Request); ok && len(values) > 0 {
			r.Header[http.CanonicalHeaderKey(header)] = values
		}
		return next.HandleFinalize(ctx, in)
	})
	return func(s *middleware.Stack) error {
		if _, ok := s.Finalize.Get("Signing"); !ok {
			return nil // a URL is signed, with no header but those that are told with it
		}
		if err := s.Finalize.Insert(away, "Signing", middleware.Before); err != nil {
			return err
		}
		return s.Finalize.Insert(back, "Signing", middleware.After)
	}
}
