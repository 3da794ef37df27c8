package wire

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"strconv"
)

// Object is a response or a part of one: members in their order.
type Object []Member

// Member is a member of an Object. Its value is a string, an int, a bool, an Object, or []Object. In XML, []Object is an element
// that occurs once for each Object.
type Member struct {
	Name  string
	Value any
}

// recommend is where clients that print a recommendation send their users.
const recommend = "https://github.com/keyconvoy/keyconvoy/blob/main/docs/gateway.md#error-codes"

// answer writes a response or an error.
func answer(w http.ResponseWriter, asXML bool, requestID, host, action string, body Object, err error) {
	w.Header().Set("x-acs-request-id", requestID)
	status, contentType, root := http.StatusOK, "application/xml", action+"Response"
	if err != nil {
		failed := failureOf(err)
		// No other form of an XML error is parsed by a client.
		status, contentType, root = failed.status, "text/xml;charset=utf-8", "Error"
		body = Object{{"RequestId", requestID}, {"Message", failed.message}, {"Recommend", recommend}, {"HostId", host}, {"Code", failed.code}}
	} else {
		body = append(body[:len(body):len(body)], Member{"RequestId", requestID})
	}
	var out bytes.Buffer
	if asXML {
		writeXML(&out, root, body)
	} else {
		contentType = "application/json"
		writeJSON(&out, body)
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(out.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(out.Bytes()) // a client that has gone needs no answer
}

func writeJSON(out *bytes.Buffer, value any) {
	switch value := value.(type) {
	case Object:
		out.WriteByte('{')
		for i, member := range value {
			if i > 0 {
				out.WriteByte(',')
			}
			writeJSON(out, member.Name)
			out.WriteByte(':')
			writeJSON(out, member.Value)
		}
		out.WriteByte('}')
	case []Object:
		out.WriteByte('[')
		for i, item := range value {
			if i > 0 {
				out.WriteByte(',')
			}
			writeJSON(out, item)
		}
		out.WriteByte(']')
	case string, int, bool:
		text, _ := json.Marshal(value) // it cannot fail for these types
		out.Write(text)
	default:
		panic(fmt.Sprintf("a response has a %T", value))
	}
}

func writeXML(out *bytes.Buffer, name string, value any) {
	if items, repeated := value.([]Object); repeated {
		for _, item := range items {
			writeXML(out, name, item)
		}
		return
	}
	out.WriteString("<" + name + ">")
	switch value := value.(type) {
	case Object:
		for _, member := range value {
			writeXML(out, member.Name, member.Value)
		}
	case string:
		_ = xml.EscapeText(out, []byte(value)) // a buffer accepts everything
	case int:
		out.WriteString(strconv.Itoa(value))
	case bool:
		out.WriteString(strconv.FormatBool(value))
	default:
		panic(fmt.Sprintf("a response has a %T", value))
	}
	out.WriteString("</" + name + ">")
}
